"""The running service over real HTTP: the same numbers as offline, and what it refuses."""

from __future__ import annotations

import base64
import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from histolake.platform.errors import ServiceError
from histolake.platform.lake import Snapshot
from histolake.serving.client import Client
from histolake.serving.tasks import Reference, annotate, embed, load_reference, predict, retrieve
from histolake.training.embed_pool import Crew
from histolake.training.embedding import embed_lake
from histolake.training.registry import ResolvedModel


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(
    small_model: Any, start: Callable[..., subprocess.Popen[str]]
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`histolake serve` as a process of its own, and its URL."""
    port = free_port()
    settings = {"HISTOLAKE_SERVICE__ENCODER_THREADS": "1", "HISTOLAKE_CLUSTER__OBJECT_STORE_MB": "128"}
    process = start("serve", "--model", small_model.folder, "--port", port, **settings)
    assert process.stdout is not None
    line = process.stdout.readline()
    url = f"http://127.0.0.1:{port}"
    try:
        assert line.startswith(f"ready at {url} "), line + process.communicate(timeout=60)[1]
        yield process, url
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def client(server: tuple[subprocess.Popen[str], str]) -> Iterator[Client]:
    with Client(server[1]) as asked:
        yield asked


@pytest.fixture(scope="module")
def reference(small_model: Any) -> Reference:
    return load_reference(small_model.folder)


def test_the_model_says_what_it_is(client: Client, small_model: Any, reference: Reference) -> None:
    about = client.model()
    assert about["model"] == {
        "name": "small",
        "version": "",
        "uri": str(small_model.folder),
        "lake_version": small_model.model.card["lake"]["version"],
        "simulated": True,
    }
    assert about["training_slides"] == ["c/T1", "c/T2"]
    assert about["genes"] == reference.symbols
    assert about["reference_pairs"] == len(reference) == 80
    assert (about["recipe"], about["embed_dim"], about["image_column"]) == ("coca-small", 32, "spot_image")


def test_embed_gives_the_offline_numbers(client: Client, small_model: Any, query_images: list[bytes]) -> None:
    sentences = ["ERBB2 KRT8 KRT18", "COL1A1"]
    np.testing.assert_allclose(
        client.embed(images=query_images), embed(small_model.model, images=query_images), atol=1e-5
    )
    np.testing.assert_allclose(
        client.embed(sentences=sentences), embed(small_model.model, sentences=sentences), atol=1e-5
    )


def test_an_embedded_lake_holds_the_numbers_that_are_served(
    client: Client, small_model: Any, planted: Snapshot, query_images: list[bytes]
) -> None:
    found = ResolvedModel(path=small_model.folder, name="small", version="", uri=str(small_model.folder))
    outcome = embed_lake(planted, found, Crew(workers=1, device="cpu"), ray=False, batch=7, where="slide_id = 'c/Q1'")
    rows = pa.Table.from_batches(
        planted.lake.embeddings.open(outcome.table).read(planted, ["pair_id", "vector", "sentence_vector"])
    )
    pairs = pa.Table.from_batches(planted.pairs(["pair_id", "sentence"], slide_ids=["c/Q1"]))
    assert rows["pair_id"] == pairs["pair_id"] and rows.num_rows == len(query_images)
    sentences = pairs["sentence"].to_pylist()
    for column, asked in (("vector", {"images": query_images}), ("sentence_vector", {"sentences": sentences})):
        stored = np.stack(rows[column].to_pylist())
        np.testing.assert_allclose(stored, client.embed(**asked), atol=1e-5)
        np.testing.assert_allclose(stored, embed(small_model.model, **asked), atol=1e-5)

    # Sentences retrieve the pictures of the table as they would be compared by hand.
    told = planted.lake.embeddings.nearest(outcome.table, client.embed(sentences=sentences[:3]), 5, planted)
    by_hand = client.embed(sentences=sentences[:3]) @ client.embed(images=query_images).T
    np.testing.assert_allclose(np.reshape(told["score"], (3, 5)), -np.sort(-by_hand, axis=1)[:, :5], atol=1e-5)


def test_retrieve_gives_the_offline_hits(
    client: Client, small_model: Any, reference: Reference, query_images: list[bytes]
) -> None:
    vectors = embed(small_model.model, images=query_images[:8])
    for against, targets in (("sentences", reference.text_MD), ("images", reference.image_MD)):
        expected = retrieve(vectors, targets, 5)
        hits = client.retrieve(images=query_images[:8], k=5, against=against)
        scores = np.array([[hit["score"] for hit in line] for line in hits])
        np.testing.assert_allclose(scores, expected.scores_NK, atol=1e-5)
    assert hits == client.retrieve(images=query_images[:8], k=5, against="images")
    best = hits[0][0]
    row = reference.pair_ids.index(bytes.fromhex(best["pair_id"]))
    assert best["slide_id"] == reference.slide_ids[row] and best["barcode"] == reference.barcodes[row]
    assert (best["x_px"], best["y_px"]) == (reference.x_px[row], reference.y_px[row])
    assert best["sentence"] == reference.sentences[row]


def test_retrieve_finds_a_training_pair_by_itself(client: Client, reference: Reference) -> None:
    (hits,) = client.retrieve(sentences=[reference.sentences[17]], k=1, against="sentences")
    assert hits[0]["sentence"] == reference.sentences[17]
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-5)


def test_retrieve_leaves_slides_out(client: Client, query_images: list[bytes]) -> None:
    hits = client.retrieve(images=query_images[:3], k=40, exclude_slides=["c/T1"])
    assert {hit["slide_id"] for line in hits for hit in line} == {"c/T2"}
    with pytest.raises(ServiceError, match="holds no slide 'c/Q1'; it holds c/T1, c/T2"):
        client.retrieve(images=query_images[:1], k=1, exclude_slides=["c/Q1"])
    with pytest.raises(ServiceError, match="41 nearest were asked for, but there are 40"):
        client.retrieve(images=query_images[:1], k=41, exclude_slides=["c/T1"])


def test_predict_gives_the_offline_numbers(
    client: Client, small_model: Any, reference: Reference, query_images: list[bytes]
) -> None:
    vectors = embed(small_model.model, images=query_images)
    expected = predict(vectors, reference.text_MD, reference.expression_MG, **reference.predict_settings)
    answer = client.predict(query_images)
    assert answer.genes == reference.symbols
    np.testing.assert_allclose(answer.expression_NG, expected.expression_NG, atol=1e-5)
    np.testing.assert_allclose(answer.nearest_similarity_N, expected.nearest_similarity_N, atol=1e-5)
    chosen = [reference.symbols[9], reference.symbols[2]]
    some = client.predict(query_images[:3], genes=chosen)
    assert some.genes == chosen
    np.testing.assert_allclose(some.expression_NG, expected.expression_NG[:3, [9, 2]], atol=1e-5)


def test_annotate_gives_the_offline_numbers(
    client: Client, small_model: Any, reference: Reference, query_images: list[bytes]
) -> None:
    classes = {"a": " ".join(reference.symbols[:5]), "b": " ".join(reference.symbols[5:12])}
    text = embed(small_model.model, sentences=list(classes.values()))
    expected = annotate(embed(small_model.model, images=query_images), text)
    answer = client.annotate(query_images, classes)
    assert answer.classes == ["a", "b"] and answer.model["simulated"] is True
    np.testing.assert_allclose(answer.scores_NC, expected.scores_NC, atol=1e-5)
    assert answer.labels == [answer.classes[best] for best in expected.best_N]


def test_many_ask_at_once(client: Client, small_model: Any, query_images: list[bytes]) -> None:
    expected = embed(small_model.model, images=query_images)

    def ask(number: int) -> float:
        start = number % 30
        vectors = client.embed(images=query_images[start : start + 1 + number % 7])
        return float(np.abs(vectors - expected[start : start + len(vectors)]).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(ask, range(64))) < 1e-5


def test_a_broken_image_fails_its_own_request_only(client: Client, query_images: list[bytes]) -> None:
    broken = query_images[0][: len(query_images[0]) // 3]  # its head is whole, its end is missing

    def ask(number: int) -> str:
        try:
            client.embed(images=[query_images[number], broken] if number == 5 else [query_images[number]])
        except ServiceError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(ask, range(16)))
    assert [number for number, sentence in enumerate(said) if sentence] == [5]
    assert "refused with 422: Image 1: " in said[5] and "Traceback" not in said[5]


def image_body(images: list[bytes], **more: Any) -> dict[str, Any]:
    return {"images": [base64.b64encode(image).decode() for image in images], **more}


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("embed", {"images": []}, "images: List should have at least 1 item"),
        ("embed", {"sentences": []}, "sentences: List should have at least 1 item"),
        ("embed", {"sentences": ["ACTB", "  "]}, "sentences.1: "),
        ("embed", {}, "give either images or sentences"),
        ("embed", {"sentences": ["ACTB"], "images": ["AAAA"]}, "images.0: the image's 3 bytes are no JPEG or PNG"),
        ("embed", {"images": ["not base64!"]}, "images.0: the image is not base64"),
        ("embed", {"sentences": ["ACTB"] * 65}, "sentences: List should have at most 64 items"),
        ("embed", {"sentence": ["ACTB"]}, "sentence: Extra inputs are not permitted"),
        ("retrieve", {"sentences": ["ACTB"], "k": 0}, "k: Input should be greater than or equal to 1"),
        ("retrieve", {"sentences": ["ACTB"], "against": "text"}, "against: Input should be"),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(client: Client, path: str, body: dict[str, Any], sentence: str) -> None:
    answer = httpx.post(f"{client.url}/v1/{path}", json=body)
    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]


def test_unknown_genes_and_single_classes_are_refused(client: Client, query_images: list[bytes]) -> None:
    with pytest.raises(ServiceError, match=r"422: The model predicts no gene NOSUCH; it predicts \d+ genes: "):
        client.predict(query_images[:1], genes=["NOSUCH"])
    with pytest.raises(ServiceError, match="422: classes: Dictionary should have at least 2 items"):
        client.annotate(query_images[:1], {"only": "ACTB"})


def test_large_bodies_are_refused_unread(client: Client, query_images: list[bytes]) -> None:
    answer = httpx.post(f"{client.url}/v1/embed", json=image_body([b"\xff" * (3 << 20)]))
    assert answer.status_code == 422 and "may have 2097152 bytes" in answer.json()["detail"]
    host = client.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.putrequest("POST", "/v1/embed")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(1 << 30))
    connection.endheaders()  # and nothing of the body
    refused = connection.getresponse()
    assert refused.status == 413
    assert "at most 67108864 are read" in json.loads(refused.read())["detail"]
    connection.close()


def test_the_routes_are_described(client: Client) -> None:
    described = httpx.get(f"{client.url}/openapi.json").json()
    assert {"/healthz", "/v1/model", "/v1/embed", "/v1/retrieve", "/v1/predict", "/v1/annotate"} <= set(
        described["paths"]
    )
    answer = described["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/PredictAnswer"}


def test_a_taken_port_is_said(client: Client, small_model: Any, run: Any) -> None:
    port = client.url.rsplit(":", 1)[1]
    done = run("serve", "--model", small_model.folder, "--port", port)
    assert done.returncode == 2
    assert f"error: Port {port} of 127.0.0.1 cannot be listened on (Address already in use)" in done.stderr


def test_nobody_there_is_said() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as nobody:
        assert not nobody.healthy()
        with pytest.raises(ServiceError, match="does not answer"):
            nobody.model()
        with pytest.raises(ServiceError, match=r"No service has answered .* for 0.3 s"):
            nobody.wait(0.3)


def processes() -> dict[tuple[int, str], int]:
    """Every live process of this machine, (pid, time it started), and its parent's pid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if fields[0] != "Z":
            found[int(path.parent.name), fields[19]] = int(fields[1])
    return found


def descendants(pid: int) -> set[tuple[int, str]]:
    known, found = processes(), set[tuple[int, str]]()
    parents = {pid}
    while children := {process for process, parent in known.items() if parent in parents} - found:
        found |= children
        parents = {child for child, _ in children}
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_stopping_leaves_nothing_behind(server: tuple[subprocess.Popen[str], str]) -> None:
    """The last test here: it stops the server."""
    process, url = server
    family = descendants(process.pid)
    assert len(family) > 3, "Ray runs in processes of its own"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0 and "stopping" in said and "Traceback" not in said
    end = time.monotonic() + 20
    while (left := family & processes().keys()) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left
    with Client(url) as client:
        assert not client.healthy()
