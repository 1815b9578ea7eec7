"""OmiCLIP: open_clip's sizes weight for weight, captions only when weighed, rows that lack a part, both tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from histolake.platform.errors import ModelError
from histolake.training.inputs import Picture, Sentence
from histolake.training.models import build_encoder, load_model, save_model
from histolake.training.models.coca import CocaEncoder, build_coca
from histolake.training.models.coca_presets import COCA_PRESETS, FINE_TUNING
from histolake.training.models.files import VOCABULARY_FILE, model_digest
from histolake.training.recipes import Recipe
from histolake.training.tokenizers import BpeTokenizer, GeneTokenizer
from histolake.training.torchvision_shim import import_torchvision

SYMBOLS = ("EPCAM", "COL1A1", "PTPRC", "KRT18", "ERBB2", "IGKC", "VIM", "ACTB")


def built(micro: Recipe, **changed: Any) -> CocaEncoder:
    torch.manual_seed(0)
    encoder: CocaEncoder = build_encoder({**micro.model, **changed})
    return encoder


def batch_of(*sentences: str | None, px: int = 28) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (len(sentences), px, px, 3), dtype=torch.uint8, generator=draw)
    return {"niche_image": pictures, "sentence": torch.from_numpy(BpeTokenizer()(sentences))}


@pytest.mark.parametrize(("size", "name"), [("vit-l-14", "coca_ViT-L-14"), ("vit-b-32", "coca_ViT-B-32")])
def test_a_preset_is_open_clips_own_weight_for_weight(size: str, name: str) -> None:
    import_torchvision()
    import open_clip
    from open_clip.coca_model import CoCa

    config = open_clip.get_model_config(name)
    assert config is not None and config.pop("custom_text")
    with torch.device("meta"):
        theirs, ours = CoCa(**config), build_coca(COCA_PRESETS[size])
    shapes = [{key: tuple(value.shape) for key, value in m.state_dict().items()} for m in (theirs, ours.coca)]
    assert shapes[0] == shapes[1]
    blocks = ("visual.transformer.resblocks.0", "visual.attn_pool", "text.transformer.resblocks.0")
    blocks += ("text_decoder.resblocks.0", "text_decoder.cross_attn.0")  # what shapes do not tell
    heads = [[m.get_submodule(f"{block}.attn").num_heads for block in blocks] for m in (theirs, ours.coca)]
    assert heads[0] == heads[1]
    assert ours.inputs == (
        Picture(column="niche_image", px=224),
        Sentence(column="sentence", tokenizer="bpe", context=76),
    )


def test_fine_tuning_is_as_the_authors_ran_it() -> None:
    assert {task: how.epochs for task, how in FINE_TUNING.items()} == {"align": 10, "predict": 10, "decompose": 5}
    assert {(how.global_batch, how.lr, how.weight_decay, how.caption_weight) for how in FINE_TUNING.values()} == {
        (64, 5e-6, 0.1, 0.0)
    }


def test_captions_are_open_clips_and_only_where_they_are_weighed(micro: Recipe) -> None:
    batch = batch_of("EPCAM KRT18", "COL1A1 " * 40, "VIM")
    quiet, telling = built(micro).eval(), built(micro, caption_weight=2.0).eval()
    ran: list[str] = []
    for encoder in (quiet, telling):
        encoder.coca.text_decoder.register_forward_hook(lambda *_: ran.append("decoder"))
    with torch.no_grad():
        first, second = quiet(batch), telling(batch)
        theirs = telling.coca(telling.normalise(batch["niche_image"]), batch["sentence"])
    assert ran == ["decoder", "decoder"] and set(second) - set(first) == {"caption_logits"}  # ours and theirs
    torch.testing.assert_close(second["caption_logits"][:, :-1], theirs["logits"])
    assert torch.equal(theirs["labels"], batch["sentence"][:, 1:])
    for name, vector in first.items():
        torch.testing.assert_close(second[name], vector)
    assert set(telling.vector_needs["caption_logits"]) == {"niche_image", "sentence"}

    caption = F.cross_entropy(telling(batch)["caption_logits"][:, :-1].mT, batch["sentence"][:, 1:], ignore_index=0)
    caption.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    decoder = list(telling.coca.text_decoder.parameters())
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in decoder)
    assert not any(weight.requires_grad for weight in quiet.coca.text_decoder.parameters())


def test_fresh_weights_are_drawn_and_nothing_is_left_as_memory_was(micro: Recipe) -> None:
    one, other = built(micro).state_dict(), built(micro).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    drawn = one["coca.text_decoder.text_projection"]
    assert 0.5 < float(drawn.std()) * micro.model["text_width"] ** 0.5 < 2


def test_rows_that_lack_a_modality_change_no_other_row_and_are_finite(micro: Recipe) -> None:
    encoder = built(micro)
    whole = batch_of("EPCAM KRT18", "COL1A1", "VIM ACTB")
    lacking = {"niche_image": whole["niche_image"].clone(), "sentence": whole["sentence"].clone()}
    lacking["niche_image"][1] = 0
    lacking["sentence"][2] = 0
    torch.testing.assert_close(encoder(lacking)["image"][[0, 2]], encoder(whole)["image"][[0, 2]])
    torch.testing.assert_close(encoder(lacking)["text"][:2], encoder(whole)["text"][:2])
    vectors = encoder(lacking)
    (vectors["image"].sum() + vectors["text"].sum() + vectors["scale"]).backward()
    made = [*vectors.values(), *(weight.grad for weight in encoder.parameters() if weight.grad is not None)]
    assert all(tensor.isfinite().all() for tensor in made)


def test_checkpointed_activations_give_the_same_gradients(micro: Recipe) -> None:
    batch, gradients = batch_of("EPCAM KRT18", "COL1A1"), []
    for flag in (False, True):
        encoder = built(micro, grad_checkpointing=flag, caption_weight=1.0).train()
        vectors = encoder(batch)
        (vectors["scale"] * (vectors["image"] * vectors["text"]).sum() + vectors["caption_logits"].mean()).backward()
        gradients.append({name: weight.grad for name, weight in encoder.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_forward_is_one_graph(micro: Recipe) -> None:
    encoder = built(micro, patch_dropout=0.5).train()
    batch = batch_of("EPCAM KRT18", "COL1A1")
    torch._dynamo.reset()
    found = torch._dynamo.explain(encoder)(batch)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_float64_goes_through(micro: Recipe) -> None:
    encoder, batch = built(micro).eval(), batch_of("EPCAM KRT18", "COL1A1")
    with torch.no_grad():
        single, double = encoder(batch), encoder.double()(batch)
    assert {vector.dtype for vector in double.values()} == {torch.float64}
    torch.testing.assert_close(single["image"].double(), double["image"], atol=1e-5, rtol=1e-4)


def test_padding_of_a_gene_sentence_is_hidden_from_its_vector(micro: Recipe) -> None:
    """open_clip finds padding by id 0; the class token's own mask reaches one place further (that is how published
    checkpoints were trained), so that place alone is seen."""
    tokenizer = GeneTokenizer(SYMBOLS, 12)
    config = {"tokenizer": "gene", "context": 12, "vocab_size": tokenizer.vocab_size}
    encoder = built(micro, **config).eval()
    assert encoder.coca.text.pad_id == 0 and encoder.inputs[1] == Sentence(
        column="sentence", tokenizer="gene", context=12
    )
    tokens = torch.from_numpy(tokenizer(["VIM ACTB KRT18"]))
    assert tokens[0].tolist().index(0) == 5
    embedding = encoder.coca.text.positional_embedding
    with torch.no_grad():
        before = encoder.encode_tokens(tokens)
        embedding[6:12] += torch.randn(6, 32)  # places that hold padding and are hidden
        torch.testing.assert_close(encoder.encode_tokens(tokens), before)
        for seen in (3, 5):  # the third gene's place, and the first of the padding
            embedding[seen] += torch.randn(32)
            after = encoder.encode_tokens(tokens)
            assert (after - before).abs().max() > 1e-3
            before = after


def test_a_gene_vocabulary_travels_with_the_model(micro: Recipe, tmp_path: Path) -> None:
    tokenizer = GeneTokenizer(SYMBOLS, 12)
    config = {**micro.model, "tokenizer": "gene", "context": 12, "vocab_size": tokenizer.vocab_size}
    card = {"embed_dim": 32, "image_px": 28, "tokenizer": "gene", "context": 12, "config": config}
    encoder = build_encoder(config)
    folder = save_model(tmp_path / "m", encoder, card | {"tokenizer_card": tokenizer.card()})
    written = json.loads((folder / "model.json").read_text())["tokenizer_card"]
    assert "vocabulary" not in written and written["vocabulary_digest"] == tokenizer.vocabulary_digest
    model = load_model(folder)
    sentences = ["VIM ACTB", "KRT18 XX"]
    with torch.no_grad():
        expected = encoder.eval().encode_tokens(torch.from_numpy(tokenizer(sentences)))
    assert model.embed_sentences(sentences).tolist() == expected.tolist()

    other = save_model(tmp_path / "o", encoder, card | {"tokenizer_card": GeneTokenizer(SYMBOLS[::-1], 12).card()})
    assert model_digest(other) != model_digest(folder)
    (folder / VOCABULARY_FILE).write_text("\n".join(SYMBOLS[::-1]))
    with pytest.raises(ModelError, match="another tokenizer"):
        load_model(folder)
    (folder / VOCABULARY_FILE).unlink()
    with pytest.raises(ModelError, match=r"no vocabulary\.txt"):
        load_model(folder)
