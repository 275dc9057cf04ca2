"""The options of the training commands, frozen: a new one is a decision, not an accident."""

import argparse

import pytest

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
