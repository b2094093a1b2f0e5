"""The storage that the configuration asks for."""

from configs.app import FolderStorage, S3Storage, StorageArgs
from configs.sources import PROJECT_ROOT
from deployments.ingress.answer.storage import BucketStore, FolderStore, Storage
from deployments.ingress.answer.temporary import TemporaryStore, folder_of


def make_storage(
    args: StorageArgs | None, service: str, service_url: str | None = None
) -> Storage | None:
    """Where files go that requests want by URL; `None`: nowhere.

    Args:
        service: its name, the same for all its ingresses, and no other service's of this node.
        service_url: where clients reach it; `None`: where they say that they do.
    """
    if args is None:
        return None
    if isinstance(args, S3Storage):
        return BucketStore(args)
    if isinstance(args, FolderStorage):
        return FolderStore(PROJECT_ROOT / args.path, service_url, args.public_url)
    return TemporaryStore(args, folder_of(service), service_url)
