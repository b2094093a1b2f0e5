"""A C2PA manifest in a file: by which service it was made, signed by whoever runs that."""

import io
import json
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from PIL import Image

from configs.provenance import ProvenanceArgs
from configs.sources import PROJECT_ROOT
from deployments.contracts.errors import GenerationFailed
from deployments.contracts.recipe import Recipe

NAME = "ray-serve-tcd"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MADE, EDITED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
# Without: a picture in the manifest would be larger than most of those that are made here.
SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}


class ProvenanceError(Exception):
    """Nothing can be signed as the configuration says. `str(error)` names the key to blame."""


class Provenance:
    """Signs files. May be used by several threads.

    Raises `ProvenanceError` if the library, the certificate or the key is not there, or one does
    not go with the other.
    """

    def __init__(self, args: ProvenanceArgs) -> None:
        try:
            import c2pa
        except ImportError as error:
            raise ProvenanceError(
                "provenance needs c2pa-python: pip install 'ray-serve-tcd[c2pa]'"
            ) from error
        self._c2pa: Any = c2pa
        certificate, key = _read("certificate", args.certificate), _key_of(args)
        try:
            info = c2pa.C2paSignerInfo(args.algorithm.encode(), certificate, key, None)
            self._signer = c2pa.Signer.from_info(info)
            self._context = c2pa.Context(c2pa.Settings.from_dict(SETTINGS))
            self.signed(_smallest(), "image/png")  # what is wrong with a certificate shows here
        except (c2pa.C2paError, GenerationFailed, ValueError) as error:
            raise ProvenanceError(
                f"certificate {args.certificate!r} and its key cannot sign: {error}"
            ) from error

    def signed(self, data: bytes, media_type: str, recipe: Recipe | None = None) -> bytes:
        """A file with its manifest, which says whether it was made of another picture, or of words
        alone. `recipe`: what it was made by, if that is known.

        Raises `GenerationFailed` if it cannot be signed.
        """
        made = io.BytesIO()
        try:
            with self._c2pa.Builder(json.dumps(_manifest(recipe)), self._context) as builder:
                builder.sign(self._signer, media_type, io.BytesIO(data), made)
        except self._c2pa.C2paError as error:
            raise GenerationFailed(f"the file could not be signed ({error})") from error
        return made.getvalue()


@cache
def make_provenance(args: ProvenanceArgs | None) -> Provenance | None:
    """What the configuration asks for, once in a process; `None`: files are not signed."""
    return None if args is None else Provenance(args)


def _manifest(recipe: Recipe | None) -> dict[str, object]:
    edited = recipe is not None and recipe.image is not None
    agent = {"name": NAME, "version": _version()}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": SOURCE_TYPE + (EDITED if edited else MADE),
        "softwareAgent": agent,
    }
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
    return {"claim_generator_info": [agent], "assertions": [actions]}


@cache
def _version() -> str:
    try:
        return version(NAME)
    except PackageNotFoundError:  # run in its folder, without being installed
        return "unknown"


def _key_of(args: ProvenanceArgs) -> bytes:
    if args.key_file is not None:
        return _read("key_file", args.key_file)
    key = os.environ.get(args.key_env or "")
    if not key:
        raise ProvenanceError(f"key_env: {args.key_env} is not set")
    return key.encode()


def _read(name: str, path: str) -> bytes:
    try:
        return (PROJECT_ROOT / path).read_bytes()
    except OSError as error:
        raise ProvenanceError(f"{name}: {path!r} cannot be read ({error.strerror})") from error


def _smallest() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()
