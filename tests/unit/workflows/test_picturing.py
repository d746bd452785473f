"""An answer with all that a page shows beside it."""

import pytest

from ftplan.planner import search
from ftplan.results import to_jsonable
from ftplan.workflows import checking, emitting, estimating, picturing, planning
from ftplan.workflows.emitting import NATIVE, Emission
from ftplan.workflows.estimating import estimate_document
from tests.unit.workflows.checks import llamafactory


@pytest.fixture(scope="module")
def chosen():
    return planning.plan(planning.plan_request("1x24GB", model="Qwen2.5-0.5B", seq_len=512, global_batch=4))


@pytest.fixture(scope="module")
def nothing():
    return planning.plan(planning.plan_request("1x4GB", model="Qwen2.5-72B", seq_len=512))


def of_own(picture):
    """What the landscape says of the answer's own configuration."""
    return [one for one in picture.landscape if one.config == picture.config]


class TestPlan:
    def test_the_document_is_what_json_prints(self, chosen):
        picture = picturing.of_plan(chosen)
        assert picture.document == to_jsonable(chosen)
        assert (picture.command, picture.config, picture.estimate) == ("plan", chosen.config, chosen.estimate)

    def test_its_own_configuration_has_its_own_figures(self, chosen):
        (own,) = of_own(picturing.of_plan(chosen))
        assert own.needed_bytes == chosen.estimate.needed_bytes
        assert own.tokens_per_second == chosen.estimate.tokens_per_second

    def test_it_holds_files_of_ftplan_and_of_the_tools_most_used(self, chosen):
        sets = {each.name: each for each in picturing.of_plan(chosen).files}
        assert list(sets) == [NATIVE, *picturing.FORMATS_SHOWN]
        assert dict(sets[NATIVE].files) == dict(planning.native_files(chosen))
        assert all(each.files and not each.problem and each.title for each in sets.values())

    def test_files_that_were_asked_for_are_the_only_others(self, chosen):
        asked = Emission(("trl",), dataset="mine")
        sets = picturing.of_plan(emitting.plan(chosen.request, asked), asked).files
        assert [(each.name, each.title) for each in sets] == [(NATIVE, "ftplan"), ("trl", "TRL")]
        assert any("mine" in text for text in sets[1].files.values())

    def test_a_draft_and_a_plan_without_a_choice_have_no_files(self, chosen, nothing):
        draft = picturing.draft(chosen.request)
        assert draft.files == ()
        assert draft.is_draft
        assert picturing.of_plan(chosen, shows_files=False).files == ()
        picture = picturing.of_plan(nothing)
        assert (picture.config, picture.estimate, picture.files) == (None, None, ())
        assert picture.landscape
        assert not any(one.fits for one in picture.landscape)

    def test_a_draft_looks_at_what_the_plan_looks_at(self, chosen):
        draft = picturing.draft(chosen.request)
        assert {one.config for one in draft.landscape} == {one.config for one in picturing.of_plan(chosen).landscape}
        assert draft.config in {one.config for one in draft.landscape if one.fits}
        assert draft.answer.rejections

    def test_a_draft_tries_no_ranks(self, monkeypatch):
        monkeypatch.setattr(search, "replayed", lambda *_: pytest.fail("an allocation was played"))
        request = planning.plan_request("1x24GB", model="Qwen2.5-0.5B", lora_rank="auto")
        assert picturing.draft(request).config.lora_rank == 16

    def test_a_tool_that_cannot_train_it_says_why(self):
        request = planning.plan_request("1x24GB", model="Qwen2.5-0.5B", method="lora", pins={"attention": "eager"})
        told = picturing.file_set(planning.plan(request), "torchtune")
        assert told.files == {}
        assert told.problem


class TestCheck:
    @pytest.fixture
    def check(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        def call(gpus, **settings):
            (tmp_path / "a.yaml").write_text(llamafactory(**settings))
            return checking.check(checking.Asked(words=("a.yaml",), gpus=gpus))

        return call

    def test_it_stands_among_others_of_the_same_training_with_its_fixes(self, check):
        checked = check("1x8GB", model_name_or_path="Qwen/Qwen2.5-1.5B", per_device_train_batch_size=8, cutoff_len=2048)
        picture = picturing.of_check(checked)
        assert picture.document == to_jsonable(checked.check)
        (own,) = of_own(picture)
        assert own.needed_bytes == checked.check.estimate.needed_bytes
        assert not own.fits
        assert checked.check.fixes
        configs = {one.config for one in picture.landscape}
        assert {fix.config for fix in checked.check.fixes} <= configs
        assert len(configs) > 1 + len(checked.check.fixes)
        assert {one.seq_len for one in configs} == {2048}


class TestEstimate:
    def test_it_stands_among_others_of_the_same_training(self):
        told = estimating.estimate({"model": "Qwen2.5-0.5B", "seq_len": 512, "lora_rank": 5}, "2x24GB")
        picture = picturing.of_estimate(told)
        assert picture.document == estimate_document(told)
        (own,) = of_own(picture)
        assert own.needed_bytes == told.estimate.needed_bytes
        assert len(picture.landscape) > 3
        for one in picture.landscape:
            assert (one.config.lora_rank, one.config.seq_len) == (5, 512)
            assert one.config.micro_batch * one.config.accumulation * 2 == told.config.micro_batch * 2

    def test_a_margin_beyond_what_a_plan_takes_is_no_error(self):
        told = estimating.estimate({"model": "gpt2", "seq_len": 64}, "1x24GB", margin=0.9)
        assert of_own(picturing.of_estimate(told))
