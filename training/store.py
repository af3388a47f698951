"""Published artifacts on S3: uploaded whole before they are announced.

writes  s3  <bucket>/<prefix>/<version>/*, the manifest last

Credentials, region and endpoint come from the usual AWS variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from afterclick.artifact import MANIFEST, read_manifest, verify
from afterclick.errors import BadInput, Unavailable


def upload(folder: Path, root: str) -> str:
    """Copy an artifact below `root` (s3://bucket/prefix); returns its URI. Copying it again changes nothing.

    Raises BadArtifact for a damaged one, BadInput for another kind of address, Unavailable where S3 does not
    take it: then there is no manifest, and nobody takes what is there for an artifact.
    """
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    parts = urlsplit(root)
    if parts.scheme != "s3" or not parts.netloc:
        raise BadInput(f"artifacts cannot be published to {root!r}: expected s3://bucket/prefix")
    manifest = read_manifest(folder)
    verify(folder, manifest)
    prefix = "/".join(filter(None, [parts.path.strip("/"), manifest.version]))
    client: Any = boto3.client("s3")
    try:
        for name in (*sorted(manifest.files), MANIFEST):
            client.upload_file(str(folder / name), parts.netloc, f"{prefix}/{name}")
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        raise Unavailable(
            f"{root} did not take {manifest.version}: {error}; the old model stays"
        ) from None
    return f"s3://{parts.netloc}/{prefix}"
