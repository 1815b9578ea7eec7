"""What a model costs, counted: against a count by hand, and against what open_clip publishes of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from histolake.training.flops import Flops, example_batch, footprint, forward_flops, mfu, peak_flops
from histolake.training.inputs import Picture, Profile, Sentence, Vector
from histolake.training.models.coca import build_coca
from histolake.training.models.coca_presets import COCA_PRESETS
from histolake.training.models.st_align.model import StAlign, StAlignConfig


def on_meta(**changed: Any) -> Any:
    with torch.device("meta"):
        return build_coca({**COCA_PRESETS["vit-l-14"], **changed})


def by_hand(width: int, layers: int, tokens: int) -> float:
    """Of a Transformer: four projections and an MLP of four widths, scores and their sums."""
    return layers * tokens * (2 * 12 * width**2 + 4 * tokens * width)


def test_flops_of_vit_l_14_are_those_by_hand() -> None:
    found = forward_flops(on_meta())
    image = by_hand(1024, 24, 257) + 2 * 256 * 588 * 1024 + 2 * 257 * 2 * 1024 * 768  # patches; keys and values
    # Of the last layer of the sentence: keys and values of all, everything else of one.
    text = by_hand(768, 11, 77) + 77 * 2 * 2 * 768**2
    assert found.trained == pytest.approx(image + text, rel=1e-3) and found.frozen == 0
    assert found.step == 3 * found.forward


def test_flops_with_captions_are_those_that_open_clip_publishes() -> None:
    """open_clip docs/model_profile.csv: coca_ViT-L-14, 214.5 GFLOPs a pair; 638 M parameters."""
    with_captions = on_meta(caption_weight=1.0)
    assert forward_flops(with_captions).forward == pytest.approx(214.5e9, rel=2e-3)
    assert sum(weight.numel() for weight in with_captions.parameters()) == pytest.approx(638.45e6, rel=1e-3)


def test_a_compiled_or_real_model_is_counted_like_one_on_meta() -> None:
    small = {**COCA_PRESETS["tiny"], "image_layers": 1}
    with torch.device("meta"):
        wanted = forward_flops(build_coca(small))
    real = build_coca(small)
    before = {name: weight.clone() for name, weight in real.state_dict().items()}
    for layer in real.compile_parts():
        layer.compile()
    assert forward_flops(real) == wanted
    assert all(torch.equal(before[name], weight) for name, weight in real.state_dict().items())
    assert {weight.device.type for weight in real.parameters()} == {"cpu"}


def test_frozen_towers_count_once() -> None:
    with torch.device("meta"):
        model = StAlign(StAlignConfig(gene_ids=tuple(range(300)), image_encoder="timm:vit_tiny_patch16_224"))
    model.load_frozen({"image_weights": "random"})
    found = forward_flops(model)
    patches = 2 * 196 * 768 * 192
    assert found.frozen == pytest.approx(by_hand(192, 12, 197) + patches, rel=1e-3) and found.trained > 0
    assert found.step == 3 * found.trained + found.frozen


def test_mfu_is_what_is_needed_over_what_could_be_done() -> None:
    cost = Flops(trained=175e9, frozen=25e9)
    assert mfu(100, cost, 989.4e12) == pytest.approx(100 * 550e9 / 989.4e12)
    assert mfu(100, cost, None) is None


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA L40", 181.05e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-16GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_peaks_are_the_data_sheets_or_unknown(name: str, rate: float | None) -> None:
    assert peak_flops(name) == rate


def test_footprint_counts_state_and_what_the_backward_pass_keeps() -> None:
    plain, again = on_meta(), on_meta(grad_checkpointing=True)
    one, two = footprint(plain, 64), footprint(plain, 128)
    trained = sum(weight.numel() for weight in plain.parameters() if weight.requires_grad)
    assert (one.parameters, one.trained) == (sum(weight.numel() for weight in plain.parameters()), trained)
    assert one.trained < one.parameters, "the caption decoder is not trained"
    assert one.state_gb == pytest.approx((4 * one.parameters + 12 * trained) / 1e9, rel=1e-3)
    assert two.activations_gb == pytest.approx(2 * one.activations_gb) and one.activations_gb > 1
    assert footprint(again, 64).activations_gb < one.activations_gb / 5
    assert footprint(plain, 64, half=False).activations_gb > 1.5 * one.activations_gb


def test_footprint_is_what_torch_keeps_on_a_real_run() -> None:
    """Against the tensors that autograd saves of a real batch in single precision."""
    model = build_coca({**COCA_PRESETS["tiny"], "image_layers": 1, "vocab_size": 100})
    held: dict[int, int] = {}
    own = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(example_batch(model.inputs, 4, "cpu", words=90))
    assert set(out) == {"image", "text", "scale"}
    assert footprint(model, 4, half=False).activations_gb == pytest.approx(sum(held.values()) / 1e9, rel=0.1)


def test_example_batches_are_what_the_inputs_say() -> None:
    inputs = (
        Picture(column="spot_image", px=28),
        Sentence(column="sentence", tokenizer="bpe", context=7),
        Profile(of="niche", gene_ids=(3, 1, 4)),
        Vector(table="scgpt", width=5),
    )
    made = example_batch(inputs, 3, "cpu", words=10)
    assert {key: (tuple(value.shape), value.dtype) for key, value in made.items()} == {
        "spot_image": ((3, 28, 28, 3), torch.uint8),
        "sentence": ((3, 7), torch.int64),
        "niche_profile": ((3, 3), torch.float32),
        "vector": ((3, 5), torch.float32),
    }
    assert made["sentence"].min() >= 1 and made["sentence"].max() < 10 and made["niche_profile"].min() >= 0
    again = example_batch(inputs, 3, "cpu", words=10)
    assert all(torch.equal(made[key], again[key]) for key in made)
    assert {value.device.type for value in example_batch(inputs, 3).values()} == {"meta"}
