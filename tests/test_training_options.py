"""The options of the training commands, frozen: a new one is a decision, not an accident."""

import argparse
import importlib
import re

import pytest

from iqguide.cli.main import build_parser
from iqguide.training import distill, fit_bpclip, fit_tiny_head, options, run_settings
from iqguide.training.config import FinetuneConfig, parse_config
from iqguide.training.prompt_data import PromptConfig

RUN = """accumulate beta2 checkpoint-every clip dataset ema epochs last-lr lower-is-better lr measure mixed-precision
out restarts root scale seed short-side split steps tracker validation warmup weight-decay workers""".split()
FINETUNE = """aligned alignment-weight attack-step attack-weight clean consistency-margin crop cut data denoised
denoised-weight freeze gradient-checkpointing init ladder-levels ladders levels lr-factors model mos-weight options
penalty-weight prompt-weight rank-margin ranking-weight scored scored-crop severity-weight squared-weight teacher twins
vertical""".split()
OPTIONS = {
    FinetuneConfig: [*RUN, *FINETUNE],
    PromptConfig: [*RUN, "base", "batch", "crop", "model"],
    distill.DistillTinySettings: "batch crop data init lr out overwrite seed steps teacher".split(),
    fit_tiny_head.HeadSettings: """back-weight batch crop data denoised dropout each each-good each-second init large
        large-crop lr mos-weight out overwrite prediction-weight second-crop second-opinion second-weight seed slope
        step-weight steps""".split(),
    fit_bpclip.FitSettings: """crop data denoised init ladders large large-crop lr out overwrite scored scored-crop seed
        slope small steps weight-decay""".split(),
}


MODULES = {
    "teach": """bf16 caches crop data kinds lr out photos rungs save-every scored scored-crop seconds seed split
        steps teacher unlabelled without""".split(),
    "train_lite": """bf16 caches crop data dropout ema init kinds ladder-crop ladder-weight level-weight lr out photos
        rungs save-every scored seconds seed split steps trunk-lr without""".split(),
    "train_bpclip": """backbone-lr crop data init kinds levels lr minutes model out photographs scored scored-crop seed
        sizes slope taef2 text trunk weight-decay""".split(),
    "fit_lite_head": """batch bf16 caches data decay dropout init ladder-crop ladder-weight ladders level-weight lr out
        rungs scored seed split steps way""".split(),
    "ladder_cache": "batch count crop data device out seed taef2 workers".split(),
}
COMMANDS = {
    "demo": "best-of device model out prompt seeds steps weights".split(),
    "score": "csv device explain explain-to json model overwrite recursive reference size weights".split(),
    "rank": "copy-to device json model recursive reference size top weights".split(),
    "sample": """batch-size best-of decoder device dtype guidance-scale guide halving judge judge-weights model
        negative-prompt out overwrite pipeline resume seeds size steps weights""".split(),
    "evaluate": """bootstrap csv dataset device group-alike json logistic lower-is-better model overwrite plot root
        scale size split weights""".split(),
    "models": "json".split(),
    "env": "".split(),
}


def flags_of(kind):
    parser = argparse.ArgumentParser()
    options.add_flags(parser, kind)
    return {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
def test_the_options_are_these(kind):
    former = {f"--{name.replace('_', '-')}" for name in getattr(kind, "FORMER_NAMES", {}).values()}
    flags = {flag for flag in flags_of(kind) if not flag.startswith("--no-")}
    assert flags - former == {f"--{name}" for name in OPTIONS[kind]}
    assert former <= flags


@pytest.mark.parametrize("name", MODULES)
def test_the_flags_of_a_module_are_these(name, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(f"iqguide.training.{name}").main(["--help"])
    described = capsys.readouterr().out.partition("options:")[2]
    flags = re.findall(r"^\s+--([a-z][a-z0-9-]*)", described, re.MULTILINE)
    assert sorted(flags) == MODULES[name]


def test_the_flags_of_the_command_line_are_these():
    (commands,) = (action for action in build_parser()._actions if isinstance(action.choices, dict))
    flags = {name: sorted(set(sub._option_string_actions) - {"-h", "--help"}) for name, sub in commands.choices.items()}
    assert flags == {name: [f"--{flag}" for flag in known] for name, known in COMMANDS.items()}


def test_a_resumable_run_is_started_in_two_more_ways():
    parser = options.Parser()
    run_settings.add_start_flags(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert flags == {"-h", "--help", "--resume", "--overwrite"}


def test_a_scale_is_two_numbers_from_a_flag_or_a_file(tmp_path):
    table = ["--dataset=csv", f"--root={tmp_path}"]
    config, _ = parse_config([*table, "--scale", "1", "5", "--lower-is-better"])
    assert (config.scale, config.lower_is_better) == ((1.0, 5.0), True)
    path = tmp_path / "c.json"
    path.write_text(f'{{"dataset": "csv", "root": "{tmp_path}", "scale": [0, 9]}}')
    assert parse_config(["--config", str(path)])[0].scale == (0, 9)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale", "1", "5"], "scale and lower_is_better are those of a data set; give dataset and root too"),
        (["--dataset=csv", "--root=a", "--scale", "1"], "argument --scale: expected 2 arguments"),
        (["--short-side=16"], "short_side is 16; expected 0 or 32 or more"),
        (["--epochs=-1"], "epochs is -1.0; expected 0 or more"),
        (["--restarts=-1"], "restarts is -1; expected 0 or more"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(capsys, flags, message):
    with pytest.raises(SystemExit):
        parse_config(flags)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
