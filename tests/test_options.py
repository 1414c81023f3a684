"""Fields of a `Config` as flags of every kind, and what a recipe says of the flags."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
from method_cases import METHODS

import train_fbr
from network.methods import Recipe, find_method
from network.options import add_option_flags, check_option, inference_options, option
from tool.crf.post import Post


@dataclasses.dataclass(frozen=True)
class Config:
    """One field of each kind."""

    radius: int = 5
    weight_far: float = option(0.5, "a number")
    mirrored: bool = option(False, "a bool", inference=True)
    pool: str = option("mean", "a choice", choices=("mean", "max"), inference=True)
    sharpness: float = option(2, "a float whose default is written as an int", inference=True)
    sharp: bool = dataclasses.field(default=True, metadata={"type": bool})


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_option_flags(parser, Config, "Trial")
    return parser.parse_args(flags)


def test_every_kind_of_field_is_a_flag() -> None:
    assert vars(parsed()) == dataclasses.asdict(Config())
    args = parsed("--radius", "7", "--weight-far", "2", "--mirrored", "--pool", "max")
    given = {"radius": 7, "weight_far": 2.0, "mirrored": True, "pool": "max"}
    assert vars(args) == {**dataclasses.asdict(Config()), **given}
    assert not parsed("--no-mirrored").mirrored
    assert not parsed("--no-sharp").sharp
    assert parsed("--sharpness", "2.5").sharpness == 2.5
    for flags in (
        ["--pool", "min"],
        ["--mirrored", "False"],
        ["--sharp", "False"],
        ["--radius", "x"],
    ):
        with pytest.raises(SystemExit):
            parsed(*flags)


def test_a_flag_of_the_type_bool_takes_no_value() -> None:
    """Even where the annotation does not say so: argparse takes any text for True."""
    field = dataclasses.field(default=True, metadata={"type": bool})
    parser = argparse.ArgumentParser()
    kind = dataclasses.make_dataclass("C", [("sharp", object, field)])
    add_option_flags(parser, kind, "Trial")
    assert not parser.parse_args(["--no-sharp"]).sharp
    with pytest.raises(SystemExit):
        parser.parse_args(["--sharp", "False"])


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("radius", True, "a whole number"),
        ("radius", -1, "a whole number"),
        ("radius", 5.0, "a whole number"),
        ("weight_far", float("nan"), "finite"),
        ("mirrored", 1, "true or false"),
        ("mirrored", "False", "true or false"),
        ("pool", "min", "there are mean, max"),
        ("pool", 3, "a str"),
    ],
)
def test_values_of_a_checkpoint_are_checked(name: str, value: object, reason: str) -> None:
    (field,) = (field for field in dataclasses.fields(Config) if field.name == name)
    with pytest.raises(ValueError, match=f"{name} is .*{reason}"):
        check_option(field, value)
    check_option(field, field.default)


def test_the_annotation_says_the_type() -> None:
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for value in (2, 2.5):
        check_option(fields["sharpness"], value)
    with pytest.raises(ValueError, match="a finite number"):
        check_option(fields["sharpness"], "2.5")
    assert inference_options(Config, ["sharpness=2.5"]) == {"sharpness": 2.5}
    with pytest.raises(ValueError, match="is not a finite number"):
        inference_options(Config, ["sharpness=x"])


def test_options_of_inference() -> None:
    assert inference_options(Config, ["mirrored=true", "pool=max"]) == {
        "mirrored": True,
        "pool": "max",
    }
    assert inference_options(Config, ["mirrored=0"]) == {"mirrored": False}
    with pytest.raises(ValueError, match="is not true or false"):
        inference_options(Config, ["mirrored=maybe"])
    with pytest.raises(ValueError, match="has mirrored, pool"):
        inference_options(Config, ["radius=3"])


@dataclasses.dataclass(frozen=True)
class Odd:
    """A default that no flag can give."""

    sides: tuple[int, ...] = (1, 2)


def test_a_default_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'sides' of Trial needs a default .* not \(1, 2\)"):
        add_option_flags(argparse.ArgumentParser(), Odd, "Trial")


def test_help_may_hold_a_percent_sign() -> None:
    kind = dataclasses.make_dataclass("C", [("share", float, option(0.5, "60 % of all"))])
    parser = argparse.ArgumentParser()
    add_option_flags(parser, kind, "Trial")
    assert "60 % of all" in parser.format_help()


def test_a_field_with_the_name_of_a_flag_is_refused() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--radius")
    with pytest.raises(ValueError, match=r"option of Trial has the name of another flag.*--radius"):
        add_option_flags(parser, Config, "Trial")


def flags_of(method: str, *flags: str) -> train_fbr.Command:
    weights = ["--backbone", "resnet38d_slim", "--weights", "none"]
    return train_fbr.parse(["--method", method, "--out", "x", *weights, *flags])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("short", [False, True])
def test_the_recipe_is_the_default_of_the_flags(name: str, short: bool) -> None:
    recipe = find_method(name).recipe.chosen(short)
    found = flags_of(name, *(["--short"] if short else [])).recipe
    for field in ("batch_size", "crop", "accumulate", "clip", "lr", "momentum", "warmup", "jitter"):
        assert getattr(found, field) == getattr(recipe, field), field
    assert found.scale == recipe.scale
    assert found.long_side == recipe.long_side
    assert found.output_stride == 8  # the only one of this backbone
    other = train_fbr.parse(
        ["--method", name, "--out", "x", "--backbone", "resnet50", "--weights", "none"]
        + (["--short"] if short else [])
    )
    assert other.recipe.output_stride == recipe.output_stride
    if short:
        assert recipe.steps < 1000
        assert recipe.steps_for(10**6) == recipe.steps, "not by epochs"
        assert recipe.long_side == (224, 384)
        assert recipe.post == find_method(name).recipe.post


@pytest.mark.parametrize("name", METHODS)
def test_seeds_of_maps_with_a_background_row_are_factors_on_it(name: str) -> None:
    method = find_method(name)
    assert not method.has_background or method.recipe.post.seeds != Post.seeds


def test_the_default_short_recipe_fits_the_optimizer() -> None:
    assert Recipe().chosen(True).momentum == 0.9
    adam = Recipe(optimizer="adam", lr=1e-5).chosen(True)
    assert (adam.momentum, adam.lr, adam.steps) == (0.0, 1e-5, 200)
    assert Recipe(epochs=5, short={"crop": 224}).chosen(True).epochs == 5


def test_a_limit_of_zero_is_none() -> None:
    assert flags_of("cam", "--clip", "0").recipe.clip is None
    assert flags_of("cam", "--clip", "2").recipe.clip == 2.0
    with pytest.raises(SystemExit):
        flags_of("cam", "--clip", "-1")


@pytest.mark.parametrize("flags", [["--method"], ["--short=1"]])
def test_a_mistake_in_the_first_flags_is_one_line(flags: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        train_fbr.parse(flags)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_recipe_with_a_mistake_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer 'Adam': there are sgd, adam, adamw"):
        Recipe(optimizer="Adam")
    with pytest.raises(ValueError, match="short: power: it may change steps"):
        Recipe(short={"steps": 5, "power": 0.0})


def test_a_flag_wins_over_the_short_recipe() -> None:
    args = flags_of("fbr", "--short", "--crop", "112", "--lr", "1").recipe
    assert (args.crop, args.long_side, args.lr, args.momentum) == (112, (112, 192), 1.0, 0.9)
    assert flags_of("amn", "--short", "--scale", "0.5", "1", "2").recipe.scale == (0.5, 1.0, 2.0)


def test_short_options_are_defaults_of_a_short_run_only() -> None:
    assert find_method("irn").recipe.short_options == {"pad": 224}
    # docs/terms.md: the second view of a short run is too coarse, and TAP doubles `cls`.
    assert find_method("ppc").recipe.short_options == {"bg_score": 0.22, "host_views": "first"}
    saliency = {"weight_sal": 2.0, "weight_sal_refined": 2.0}
    own = saliency | {"pseudo_source": "cam", "bg_score": 0.22, "host_views": "first"}
    assert find_method("fbr").recipe.short_options == own
    assert not find_method("eps").recipe.short_options
    assert flags_of("irn").options["pad"] == 512
    assert flags_of("irn", "--short").options["pad"] == 224
    assert flags_of("irn", "--short", "--pad", "0").options["pad"] == 0
    for name in ("ppc", "fbr"):
        assert flags_of(name).options["bg_score"] == 0.10
        assert flags_of(name, "--short").options["bg_score"] == 0.22


def test_a_short_option_that_does_not_exist_is_refused() -> None:
    parser = argparse.ArgumentParser()
    with pytest.raises(ValueError, match="short_options of irn: there is no option padding"):
        add_option_flags(parser, find_method("irn").Config, "irn", defaults={"padding": 1})
