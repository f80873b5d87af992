"""What verify says of an output, and damage to do to one: see verified_fixtures for the output."""

import json

from jobs import cli
from support.recorded_generation import RECIPE

NAME = RECIPE.id
HOME, PARTS = f"ledger/recipe={NAME}", f"predictions/recipe={NAME}"


def verify(out, capsys):
    """Exit code, the JSON object, and the text."""
    code = cli.main(["verify", str(out), "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out.splitlines()[-1]), printed.err


def problems(out, capsys):
    """Problems by key."""
    code, content, text = verify(out, capsys)
    assert code == 5
    for problem in content["problems"]:
        assert f"{problem['key']} {problem['problem']}\n  {problem['advice']}\n" in text
    return {problem["key"]: (problem["problem"], problem["advice"]) for problem in content["problems"]}


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
