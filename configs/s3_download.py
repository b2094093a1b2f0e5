"""One object of S3 to a file. Imports boto3: to be imported where something is fetched."""

import os
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from boto3.s3.transfer import TransferConfig, create_transfer_manager
from s3transfer.futures import TransferFuture
from s3transfer.subscribers import BaseSubscriber

from configs.sources import SourceUnavailable

if TYPE_CHECKING:
    from configs.s3 import StoredObject

# Only what is asked for in ranges is asked for by its tag, so all is; the other client has no tags.
_BY_TAG = TransferConfig(multipart_threshold=1, preferred_transfer_client="classic")


class _AsListed(BaseSubscriber):
    """Says what is to be had, so that nothing else comes."""

    def __init__(self, item: "StoredObject") -> None:
        self._item = item

    def on_queued(self, future: TransferFuture, **_: Any) -> None:
        """See `BaseSubscriber`."""
        future.meta.provide_transfer_size(self._item.size)
        future.meta.provide_object_etag(self._item.tag or None)


def download(asked: Any, bucket: str, item: "StoredObject", what: str) -> None:
    """Brings an object as it was listed to its `path`, where it is whole or not at all.

    Args:
        asked: a client of boto3.
        what: how errors name it.

    Raises `SourceUnavailable`, and of s3transfer's errors `S3DownloadFailedError` if another
    object has taken its place.
    """
    path = item.path.with_name(f"{uuid4().hex}.partly")
    with path.open("xb") as partly:  # others may read it, as the umask says
        try:
            with create_transfer_manager(asked, _BY_TAG) as manager:
                manager.download(bucket, item.key, partly, subscribers=[_AsListed(item)]).result()
            partly.flush()
            if os.fstat(partly.fileno()).st_size != item.size:
                raise SourceUnavailable(f"{what} did not come whole")
            os.replace(path, item.path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
