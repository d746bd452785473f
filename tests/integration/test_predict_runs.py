"""Predictions of tiny models: losses are those of one row at a time, whatever the batch; every form of data."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ftplan.errors import InputError
from ftplan.launcher import demo
from ftplan.launcher.data import load
from ftplan.launcher.events import Noted
from ftplan.launcher.job import DataSource, Source
from ftplan.launcher.predict_job import Predicted, PredictEvent, PredictJob

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytest.importorskip("rouge_score")

from ftplan.launcher.train import predict_models  # noqa: E402
from ftplan.launcher.train.batches import batches, halving  # noqa: E402
from ftplan.launcher.train.chat import chat_format  # noqa: E402
from ftplan.launcher.train.predict_rows import Example, examples  # noqa: E402
from ftplan.launcher.train.predicting import predict  # noqa: E402
from ftplan.launcher.train.scoring import Examinee, generations, losses  # noqa: E402
from ftplan.launcher.train.text_metrics import exact_match, rouge  # noqa: E402

HELLO = [("user", "Say hello."), ("assistant", "Hello."), ("user", "Say goodbye."), ("assistant", "Goodbye.")]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for one another cost more than models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's architecture with random weights, as a folder."""
    folder = tmp_path_factory.mktemp("predict") / "base"
    torch.manual_seed(3)
    config = transformers.AutoConfig.from_pretrained(demo.model_path())
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """An adapter on it that knows one answer by heart."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    tokens, labels = tensors(demo_rows(1)[0])
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    for _ in range(25):
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(base.parent / "adapter")
    return base.parent / "adapter"


def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(demo.model_path())


def demo_rows(count: int) -> list[Example]:
    return examples(load(demo.data()), tokenizer(), chat_format(tokenizer(), None), limit=count, max_length=128)


def tensors(row: Example) -> tuple[Any, Any]:
    """A row as tokens and labels, as transformers takes them."""
    labels = [token if scored else -100 for token, scored in zip(row.tokens, row.scored, strict=True)]
    return torch.tensor([row.tokens]), torch.tensor([labels])


def predicted(job: PredictJob) -> tuple[Predicted, list[PredictEvent], list[dict[str, Any]]]:
    events: list[PredictEvent] = []
    predict(job, events.append)
    last = events[-1]
    assert isinstance(last, Predicted)
    return last, events, [json.loads(line) for line in Path(job.out).read_text().splitlines()]


def predict_job(base: Path, adapter: Path, out: Path, **changes: Any) -> PredictJob:
    fields = {
        "trained": str(adapter),
        "is_adapter": True,
        "base": Source(kind="folder", location=str(base)),
        "tokenizer": demo.tokenizer(),
        "data": demo.data(),
        "metrics": ("loss", "exact_match", "rouge"),
        "limit": 12,
        "max_new_tokens": 12,
        "max_length": 128,
        "batch_size": 5,
        "out": str(out),
    }
    return PredictJob.model_validate(fields | changes)


def one_by_one(model: Any, rows: Sequence[Any]) -> list[float]:
    """The loss as transformers computes it, a row at a time, without padding."""
    found = []
    for row in rows:
        tokens, labels = tensors(row)
        with torch.no_grad():
            found.append(float(model(input_ids=tokens, labels=labels).loss) * row.scored_tokens)
    return found


def test_before_and_after(base: Path, adapter: Path, tmp_path: Path) -> None:
    ended, _, lines = predicted(predict_job(base, adapter, tmp_path / "out.jsonl"))
    rows = demo_rows(12)
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    assert ended.before is not None
    tokens = sum(row.scored_tokens for row in rows)
    assert (ended.rows, ended.available, ended.before.tokens) == (12, 178, tokens)
    assert ended.before.loss == pytest.approx(sum(one_by_one(model, rows)) / tokens, rel=1e-5)
    assert ended.before.perplexity == pytest.approx(math.exp(ended.before.loss))
    adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
    assert ended.after.loss == pytest.approx(sum(one_by_one(adapted, rows)) / tokens, rel=1e-5)

    # The row that was learned is told word for word, and no other.
    assert lines[0]["after"] == lines[0]["reference"]
    assert lines[0]["loss_after"] < 0.1 < lines[0]["loss_before"]
    assert ended.after.exact_match == pytest.approx(1 / 12)
    assert ended.before.exact_match == 0
    assert ended.after.rouge1 is not None
    assert ended.after.rouge1 > 1 / 12
    assert set(lines[3]) == {"prompt", "reference", "before", "after", "loss_before", "loss_after"}


def test_predictions_do_not_depend_on_the_batch(base: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    rows = demo_rows(6)
    alone, together = (Examinee(model, tokenizer(), size) for size in (1, 6))
    assert losses(together, rows, lambda done: None) == pytest.approx(losses(alone, rows, lambda done: None), rel=1e-4)
    assert losses(alone, rows, lambda done: None) == pytest.approx(one_by_one(model, rows), rel=1e-4)
    texts = generations(together, rows, 8, lambda done: None)
    assert texts == generations(alone, rows, 8, lambda done: None)
    assert len(set(texts)) > 1


def test_conversations_and_pairs(base: Path, adapter: Path, tmp_path: Path) -> None:
    data = tmp_path / "chat.jsonl"
    row = {"messages": [{"role": role, "content": text} for role, text in HELLO]}
    data.write_text((json.dumps(row) + "\n") * 2)
    job = predict_job(base, adapter, tmp_path / "out", data=DataSource(paths=(str(data),)), before=False)
    ended, _, lines = predicted(job)
    assert (ended.rows, ended.before) == (4, None)
    assert [line["reference"] for line in lines[:2]] == ["Hello.", "Goodbye."]
    assert lines[1]["prompt"] == (
        "<|user|>Say hello.<|end|><|assistant|>Hello.<|end|><|user|>Say goodbye.<|end|><|assistant|>"
    )
    assert "before" not in lines[0]

    data.write_text('{"prompt": "2 + 2 is ", "completion": "4"}\n')
    ended, _, lines = predicted(job)
    # The digit and the end of the text.
    assert (ended.rows, ended.after.tokens) == (1, 2)


def test_an_empty_prompt_is_generated_from(base: Path, adapter: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "", "completion": "4"}\n{"prompt": "2 + 2 is ", "completion": "4"}\n')
    alone = predict_job(base, adapter, tmp_path / "out", data=DataSource(paths=(str(data),)), batch_size=1)
    together = alone.model_copy(update={"batch_size": 2, "out": str(tmp_path / "together")})
    texts = [line["before"] for line in predicted(alone)[2]]
    assert texts == [line["before"] for line in predicted(together)[2]]
    assert texts[0]


def test_plain_text_has_a_loss_only(base: Path, adapter: Path, tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    data.write_text('{"text": "The cat licked its paw."}\n')
    job = predict_job(base, adapter, tmp_path / "out", data=DataSource(paths=(str(data),)))
    ended, events, lines = predicted(job)
    assert ended.after.loss is not None
    assert (ended.after.exact_match, ended.after.rouge1) == (None, None)
    assert any(isinstance(event, Noted) and "only their loss" in event.message for event in events)
    assert set(lines[0]) == {"prompt", "reference", "loss_before", "loss_after"}
    with pytest.raises(InputError, match="no prompt to go on from"):
        predict(job.model_copy(update={"metrics": ("rouge",)}), lambda event: None)


def test_rows_cut_before_their_completion_do_not_count(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no completion begins within 4 tokens"):
        predict(predict_job(base, adapter, tmp_path / "out", max_length=4), lambda event: None)
    assert not (tmp_path / "out").exists()


def test_a_whole_model_beside_its_base(base: Path, tmp_path: Path) -> None:
    job = predict_job(base, base, tmp_path / "out", is_adapter=False, limit=3, metrics=("loss",))
    ended, _, _ = predicted(job)
    assert ended.before == ended.after


def test_a_whole_model_is_gone_before_the_next_is_loaded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    load_model = predict_models._loaded

    def watched(*args: Any, **options: Any) -> Any:
        assert not any(one() for one in loaded)
        model = load_model(*args, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(predict_models, "_loaded", watched)
    predict(predict_job(base, base, tmp_path / "out", is_adapter=False, limit=2), lambda event: None)
    assert len(loaded) == 2


def test_batches_are_of_like_lengths_and_bounded() -> None:
    assert list(batches([5, 1, 9, 4], 2, 100)) == [[2, 0], [3, 1]]
    assert list(batches([5, 1, 9, 4], 4, 10)) == [[2], [0, 3], [1]]
    assert list(batches([], 4, 10)) == []


@pytest.mark.parametrize("message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory: 8 bytes"])
def test_a_batch_is_halved_where_memory_runs_out(message: str) -> None:
    sizes = []

    def work(rows: Sequence[int]) -> list[int]:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise (torch.OutOfMemoryError if "CUDA" in message else RuntimeError)(message)
        return [2 * row for row in rows]

    assert halving(work, [1, 2, 3, 4, 5]) == [2, 4, 6, 8, 10]
    assert sizes == [5, 2, 3, 1, 2]


def test_other_errors_and_single_rows_are_not_tried_again() -> None:
    def work(rows: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes differ" if len(rows) > 1 else "not enough memory")

    with pytest.raises(RuntimeError, match="shapes differ"):
        halving(work, [1, 2])
    with pytest.raises(RuntimeError, match="not enough memory"):
        halving(work, [1])


def test_scores_of_texts() -> None:
    assert exact_match(["a b", " c ", "d"], ["a b", "c", "e"]) == pytest.approx(2 / 3)
    first, second, longest = rouge(["the cat sat", "x"], ["the cat ran", "y"])
    assert (first, second, longest) == pytest.approx((1 / 3, 1 / 4, 1 / 3))
