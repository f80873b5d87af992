"""Damage an output, and read what verify reports; the output is in `damage_fixtures`."""

import json

from jobs import cli
from support.recorded_generation import RECIPE

NAME = RECIPE.id
HOME, PARTS = f"ledger/recipe={NAME}", f"predictions/recipe={NAME}"


def verify(out, capsys):
    """Run verify; return its exit code, its JSON object and its text."""
    code = cli.main(["verify", str(out), "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out.splitlines()[-1]), printed.err


def problems(out, capsys):
    """Return the (problem, advice) of each damaged key."""
    code, content, text = verify(out, capsys)
    assert code == 5
    for problem in content["problems"]:
        assert f"{problem['key']} {problem['problem']}\n  {problem['advice']}\n" in text
    return {problem["key"]: (problem["problem"], problem["advice"]) for problem in content["problems"]}


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def edit(path, **changes):
    """Change values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
