"""What all commands have in common: help that fits, completion, errors that say where to look."""

import json
import os
import pathlib
import sys

import numpy as np
import pytest

pytest.importorskip("click")

import click

from dbnorm_jax._cli.commands import declared  # noqa: F401 - they add themselves
from dbnorm_jax._cli.commands.group import cli
from dbnorm_jax._cli.commands.main import main

# One name means and looks the same in every command that has it.
SAME = {
    "--similarity": "cosine|dot|euclidean",
    "--beta-query": "BETA",
    "--beta-gallery": "BETA",
    "--bank-pairs": "FILE|rows",
    "--query-bank": "FILE",
    "--gallery-bank": "FILE",
    "--labels": "FILE",
}


def help_of(*names):
    command, context = cli, click.Context(cli, info_name="dbnorm", **cli.context_settings)
    for name in names:
        command = command.commands[name]
        context = click.Context(command, info_name=name, parent=context)
    return command.get_help(context)


def test_short_help_is_not_cut():
    listed = help_of().partition("Commands:")[2].strip().splitlines()
    assert [line.split()[0] for line in listed] == sorted(cli.commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_and_options(name):
    assert all(len(line) <= 100 for line in help_of(name).splitlines())
    options = {
        option: parameter
        for parameter in cli.commands[name].params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }
    assert "--json" in options or name == "demo"
    assert all(option.help or option.name in {"dtype"} for option in options.values())
    for option, metavar in SAME.items():
        if option in options:
            found = options[option]
            context = click.Context(cli.commands[name])
            assert found.make_metavar(context).strip("[]") == metavar
    if "--output" in options:
        assert "--force" in options


def test_the_command_has_at_most_45_options():
    """Over all commands, by their names: help, version and short forms as well."""
    contexts = [(cli, click.Context(cli, **cli.context_settings))]
    contexts += [
        (command, click.Context(command, parent=contexts[0][1], info_name=name))
        for name, command in cli.commands.items()
    ]
    options = {
        name
        for command, context in contexts
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {"--query-bank", "--help", "--version", "-k", "--choice"} <= options
    assert len(options) <= 45, sorted(options)


def test_labels_are_ids_to_those_who_have_ids(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name, rows in (("queries", 3), ("gallery", 4)):
        np.save(f"{name}.npy", random.normal(size=(rows, 8)).astype(np.float32))
    pathlib.Path("ids.txt").write_text("a\nb\nc\n", "utf-8")
    pathlib.Path("items.txt").write_text("w\nx\ny\nz\n", "utf-8")
    found = [
        call(
            "search",
            "queries.npy",
            "gallery.npy",
            f"--{queries}",
            "ids.txt",
            f"--{items}=items.txt",
        )
        for queries, items in (("query-ids", "gallery-ids"), ("query-labels", "labels"))
    ]
    assert found[0] == found[1]
    assert found[0][0] == 0
    assert [json.loads(line)["query"] for line in found[0][1].splitlines()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ev", ["plain,evaluate"]),
        ("fit --bank-p", ["plain,--bank-pairs"]),
        ("fit images.npy --method dual", ["plain,dualis", "plain,dualdis"]),
        ("search que", ["file,que"]),
        ("evaluate set.npz --query-bank tr", ["file,tr"]),
        ("merge monday.npz tue", ["file,tue"]),
        ("inspect images.npy --output re", ["file,re"]),
    ],
)
def test_completion(words, expected, monkeypatch, capsysbinary):
    line = f"dbnorm {words}"
    monkeypatch.setenv("_DBNORM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 0
    assert capsysbinary.readouterr().out.decode().split() == expected


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (["evalute"], "evalute", "see dbnorm --help"),
        (["fit", "g.npy"], "Missing option '--output'", "see dbnorm fit --help"),
        (["tune", "q.npy"], "Missing argument 'GALLERY_BANK'", "see dbnorm tune --help"),
        (["search", "q", "g", "-k", "0"], "-k': 0 is not in the range", "see dbnorm search --help"),
    ],
)
def test_misuse_names_the_help(arguments, problem, remedy, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    found = capsys.readouterr()
    assert stopped.value.code == 2
    assert found.out == ""
    assert found.err.startswith("dbnorm: error: ")
    assert problem in found.err
    assert found.err.endswith(f"; {remedy}\n")
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("buffering", [1, -1], ids=["while it prints", "at the end"])
@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["search", "a.npy", "a.npy"]])
def test_a_reader_that_goes_away(arguments, buffering, tmp_path, monkeypatch, capfd):
    """As in `dbnorm ... | head`: the code of the page, whoever meets the closed pipe first."""
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.eye(10, dtype=np.float32))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering) as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
    assert stopped.value.code == 141
    assert capfd.readouterr().err == ""
