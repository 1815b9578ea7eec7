"""The local stack for real: a store and an MLflow server that start, answer, keep what they hold, and stop."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "local" / "stack.sh"
BIN = Path(sys.executable).parent


def free_port_block() -> int:
    """A port whose followers, at the distances that the script and the store use, are free as well."""
    for base in range(20000, 30000, 37):
        wanted = [base + extra for extra in (0, 1000, 1100, 1200, 10000, 11000, 11100, 11200)]
        if all(_is_free(port) for port in wanted):
            return base
    raise AssertionError("no block of free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.skipif(
    not (shutil.which("weed") or (BIN / "weed").exists()),
    reason="the object store of the extra 'store' is not installed",
)
def test_the_local_stack_serves_a_bucket_and_a_tracking_server(tmp_path: Path) -> None:
    import boto3

    base = free_port_block()
    env = os.environ | {
        "STACK_DIR": str(tmp_path / "stack"),
        "S3_PORT": str(base),
        "MLFLOW_PORT": str(base + 7),
        "BIN": str(BIN),
    }
    try:
        subprocess.run([SCRIPT, "up"], env=env, check=True, stdout=subprocess.DEVNULL, timeout=180)
        lines = subprocess.run([SCRIPT, "env"], env=env, check=True, capture_output=True, text=True).stdout.split()
        shown = dict(word.split("=", 1) for word in lines if "=" in word)
        client = boto3.client(
            "s3",
            endpoint_url=shown["AWS_ENDPOINT_URL"],
            aws_access_key_id=shown["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=shown["AWS_SECRET_ACCESS_KEY"],
            region_name=shown["AWS_REGION"],
        )
        client.put_object(Bucket="histolake", Key="note", Body=b"kept")
        _log_a_run(shown, tmp_path)
        kept = [entry["Key"] for entry in client.list_objects_v2(Bucket="histolake")["Contents"]]
        assert any(key.startswith("mlflow/") and key.endswith("words.txt") for key in kept)
    finally:
        subprocess.run([SCRIPT, "down"], env=env, check=True, stdout=subprocess.DEVNULL, timeout=180)
    assert _is_free(base) and _is_free(base + 7)
    assert oct((tmp_path / "stack" / "keys").stat().st_mode)[-3:] == "600"


def _log_a_run(shown: dict[str, str], tmp_path: Path) -> None:
    """In a process of its own: the tracking client keeps its address for the life of a process."""
    code = (
        "import mlflow, sys\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "with mlflow.start_run():\n"
        "    mlflow.log_text('words', 'words.txt')\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, shown["HISTOLAKE_TRACKING__URI"]],
        check=True,
        cwd=tmp_path,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )
