"""What an object store keeps out of sight: parts of uploads that were never completed, and old versions of objects.

Neither is listed among the objects below a prefix, and both hold bytes. A writer that dies in an upload leaves its
parts for ever unless the bucket has a rule for them; a bucket with versioning keeps every object that was deleted. On
disk there is neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from histolake.platform.storage import Location

__all__ = ["abort_uploads", "drop_old_versions"]


def abort_uploads(root: Location, older_than_s: float) -> int:
    """Give up the unfinished uploads below a root that were begun before a moment (seconds since the epoch); returns
    how many. A live writer's is younger than its lease."""
    if not root.is_remote:
        return 0
    begun = _asked(lambda: list(_pages(root, "list_multipart_uploads", "Uploads"))) or []
    old = [upload for upload in begun if upload["Initiated"].timestamp() < older_than_s]
    for upload in old:
        what = {"Bucket": _bucket(root), "Key": upload["Key"], "UploadId": upload["UploadId"]}
        _asked(partial(root.s3_client().abort_multipart_upload, **what))
    return len(old)


def drop_old_versions(root: Location) -> int:
    """Remove what a bucket with versioning keeps of objects below a root that were deleted or replaced; returns how
    many versions. What is there stays."""
    if not root.is_remote:
        return 0
    client, bucket = root.s3_client(), _bucket(root)
    if (_asked(lambda: client.get_bucket_versioning(Bucket=bucket)) or {}).get("Status") is None:
        return 0  # it never was on: nothing is kept
    old = [entry for entry in _pages(root, "list_object_versions", "Versions") if not entry["IsLatest"]]
    for entry in old:
        client.delete_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])
    # A mark of deletion goes after the versions that it hides, or the last of them would be seen again.
    for entry in list(_pages(root, "list_object_versions", "DeleteMarkers")):
        client.delete_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])
    return len(old)


def _asked(request: Callable[[], Any]) -> Any:
    """A store's answer; None where it does not know of such things, or of this one any more."""
    from botocore.exceptions import ClientError

    try:
        return request()
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 405, 501):
            return None
        raise


def _pages(root: Location, call: str, what: str) -> Iterator[dict[str, Any]]:
    prefix = root.uri.removeprefix("s3://").partition("/")[2]
    under = {"Prefix": f"{prefix}/"} if prefix else {}
    for page in root.s3_client().get_paginator(call).paginate(Bucket=_bucket(root), **under):
        yield from page.get(what) or []


def _bucket(root: Location) -> str:
    return root.uri.removeprefix("s3://").partition("/")[0]
