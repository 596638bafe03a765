"""docs/configuration.md says what the code says."""

import re

from controlplane.sources import support
from tests.support.tiers import repository


def test_fields_without_effect() -> None:
    text = (repository() / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = text.split("test_docs.py -->")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\w+) \| `([^`]+)` \| (.*) \|$", table, re.MULTILINE)
    wanted = [(kind, path, why) for (kind, path), why in sorted(support.UNSUPPORTED.items())]
    wanted += [(kind, f"{path}: {value}", why) for (kind, path, value), why in sorted(support.VALUES.items())]
    assert rows == wanted
