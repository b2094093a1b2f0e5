"""docs/configuration.md has every key of the configuration, with its default."""

import re

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs import app, jobs, names, provenance
from configs.app import FOLLOWING
from tests.docs.pages import DOCS

TABLES: dict[str, type[BaseModel]] = {
    "`args` of `tcd`": app.ServiceArgs,
    "`depth`, and each of `image_encoders`": app.PreprocessorArgs,
    "`safety`": app.SafetyArgs,
    "`provenance`": provenance.ProvenanceArgs,
    "`playground`": app.PlaygroundArgs,
    "`storage`: temporary": app.TemporaryStorage,
    "`storage`: folder": app.FolderStorage,
    "`storage`: s3": app.S3Storage,
    "`keys`": app.KeysArgs,
    "`jobs`": jobs.JobsArgs,
    "`jobs.webhooks`": jobs.WebhookArgs,
    "`user_config` of `Directory`": names.NamesConfig,
    "`args` of `model-NAME`": app.ModelArgs,
    "`defaults`": app.Defaults,
    "`vae`": app.VaeArgs,
    "each of `controls`": app.ControlArgs,
    "`ip_adapter`, and each of `ip_adapters`": app.IpAdapterArgs,
    "`motion_schedule`": app.MotionSchedule,
    "each of `warmup`": app.WarmSize,
    "`user_config` of `Diffusion`": app.ModelUserConfig,
    "`limits`": app.Limits,
}


def default(name: str, field: FieldInfo) -> str:
    """As YAML says it; empty: the key must be there."""
    if field.is_required():
        return ""
    if name in FOLLOWING:
        return f"`{FOLLOWING[name][1]:.0f}` or more"
    value = field.default
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True) or {}
        kind = getattr(field.default, "kind", None)
        value |= {"kind": kind} if kind else {}
    elif isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


def rows(heading: str) -> dict[str, str]:
    """The keys of the table below a heading, and their defaults."""
    page = (DOCS / "configuration.md").read_text()
    section = re.split(r"^#+ ", page.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", section[0], re.MULTILINE))


@pytest.mark.parametrize("heading", TABLES)
def test_a_table_has_each_key_with_its_default(heading: str) -> None:
    fields = TABLES[heading].model_fields
    assert rows(heading) == {name: default(name, field) for name, field in fields.items()}
