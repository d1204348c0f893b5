"""The manifest's specification: the schema in docs/ is that of the code, and files of every version stay readable."""

import json
from pathlib import Path

import msgspec

from polyak.manifest import Manifest

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "docs" / "manifest-1.schema.json"
GOLDEN = ROOT / "tests" / "golden" / "manifest-1.json"


def test_the_schema_in_the_documentation_is_current():
    current = json.loads(json.dumps(msgspec.json.schema(Manifest)))
    assert json.loads(SCHEMA.read_text()) == current, (
        "write it again: python -c 'import json, msgspec, polyak.manifest as m; "
        "print(json.dumps(msgspec.json.schema(m.Manifest), indent=1))' > docs/manifest-1.schema.json"
    )


def test_a_manifest_of_version_1_stays_readable():
    manifest = Manifest.from_json(GOLDEN.read_text(), "golden")
    assert manifest.roles["average"].count == 3
    assert manifest.weights[0].weight.path == "head/kernel"
    assert manifest.weights[0].weight.evidence.structure == "#1/kernel"


def test_fields_of_the_future_are_ignored():
    body = json.loads(GOLDEN.read_text()) | {"moon": "full"}
    assert Manifest.from_json(json.dumps(body), "future") == Manifest.from_json(GOLDEN.read_text(), "golden")
