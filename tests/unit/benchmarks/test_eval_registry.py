from __future__ import annotations

import pickle

import pytest

import callbacks.benchmarks as package
from callbacks.benchmarks import BENCHMARKS, Profile, load_benchmark
from callbacks.benchmarks.interface import Benchmark


@pytest.mark.parametrize("profile", ["paper", "head", "fixed"])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_name_and_profile(name: str, profile: Profile) -> None:
    benchmark = pickle.loads(pickle.dumps(load_benchmark(name, profile)))  # noqa: S301  # our own
    assert isinstance(benchmark, Benchmark)
    assert (benchmark.name, benchmark.profile) == (name, profile)
    assert benchmark.file.endswith(".tsv")
    assert len(benchmark.md5 or "") == 32
    assert benchmark.hub is not None


def test_the_six_of_the_paper_with_the_numbers_that_it_reports() -> None:
    loaded = [load_benchmark(name) for name in BENCHMARKS]
    assert [(b.title, b.headline, b.rules_suffice) for b in loaded] == [
        ("MathVista", "score", True),
        ("MathVision", "score", True),
        ("MathVerse (Vision Only)", "score", False),
        ("DynaMath", "worst", True),
        ("WeMath", "strict", True),
        ("LogicVista", "score", False),
    ]
    assert {b.profile for b in loaded} == {"paper"}


@pytest.mark.parametrize("name", ["We-Math", "WEMATH", "we_math"])
def test_spelling_is_free(name: str) -> None:
    assert load_benchmark(name).name == "wemath"


@pytest.mark.parametrize(
    ("name", "meant"), [("mathvisa", "mathvista"), ("dynamat", "dynamath"), ("logic", "logicvista")]
)
def test_near_misses_are_suggested(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"no benchmark '{name}'; did you mean '{meant}'"):
        load_benchmark(name)


@pytest.mark.parametrize("name", ["mmmu", "", "../judge", "os", "x" * 5000])
def test_other_names_are_refused_without_importing_anything(name: str) -> None:
    with pytest.raises(ValueError, match=r"There are mathvista, .*JSONLBenchmark") as caught:
        load_benchmark(name)
    assert len(str(caught.value)) < 400


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ValueError, match="profile must be paper, head or fixed, got 'best'"):
        load_benchmark("wemath", "best")  # type: ignore[arg-type]


def test_what_the_package_offers_is_there() -> None:
    assert all(hasattr(package, name) for name in package.__all__)
