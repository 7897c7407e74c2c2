#!/usr/bin/env bash
# moto 5.2.5: a test of S3 in which two writers race passes, although one update is lost.
#
# A registry in object storage is read, changed and written back under the condition that its ETag is
# still the one that was read. S3 documents the answer 412 for each way to write if it is not. moto
# checks If-Match for put_object. It ignores If-Match at the end of an upload in parts, and the condition
# on the source of a copy, without an error. A client that sends a large file in parts then overwrites
# the first of two updates, and its test passes.
#
# Seen, for the second of two writers (call: answer, rows in the registry):
#   put_object IfMatch: PreconditionFailed, first
#   complete_multipart_upload IfMatch: accepted, second
#   copy_object CopySourceIfMatch: accepted, second
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet "moto[s3]==5.2.5"
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import boto3
from botocore.exceptions import ClientError
from moto import mock_aws


def put(s3, etag):
    s3.put_object(Bucket="runs", Key="registry", Body=b"second", IfMatch=etag)


def parts(s3, etag):
    key = {"Bucket": "runs", "Key": "registry"}
    upload = s3.create_multipart_upload(**key)["UploadId"]
    part = s3.upload_part(**key, UploadId=upload, PartNumber=1, Body=b"second")
    listed = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.complete_multipart_upload(**key, UploadId=upload, MultipartUpload=listed, IfMatch=etag)


def copy(s3, etag):
    """Copy a draft if it is still the version that was read; it is not."""
    s3.put_object(Bucket="runs", Key="draft", Body=b"second")
    s3.copy_object(Bucket="runs", Key="registry", CopySource="runs/draft", CopySourceIfMatch=etag)


seen = {}
for name, write in (
    ("put_object IfMatch", put), ("complete_multipart_upload IfMatch", parts),
    ("copy_object CopySourceIfMatch", copy),
):
    with mock_aws():
        s3 = boto3.client("s3", "us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
        s3.create_bucket(Bucket="runs")
        read = s3.put_object(Bucket="runs", Key="registry", Body=b"")["ETag"]
        s3.put_object(Bucket="runs", Key="registry", Body=b"first", IfMatch=read)
        try:
            write(s3, read)
            answer = "accepted"
        except ClientError as error:
            answer = error.response["Error"]["Code"]
        rows = s3.get_object(Bucket="runs", Key="registry")["Body"].read().decode()
    seen[name] = (answer, rows)
    print(f"{name}: {answer}, {rows}")
assert seen["put_object IfMatch"] == ("PreconditionFailed", "first")
assert seen["complete_multipart_upload IfMatch"] == ("accepted", "second"), "changed"
assert seen["copy_object CopySourceIfMatch"] == ("accepted", "second"), "changed"
PYTHON
