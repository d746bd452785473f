import json

import pytest

GOOD = {"model": "Qwen-7B", "gpus": "1x24GB"}

MIXED = [
    ({"id": 1, **GOOD}, None),
    ("not json", ""),
    ({"id": "two", "model": "nope", "gpus": "1x24GB"}, "model"),
    ([1, 2], ""),
    ({"id": 3, "model": "Qwen-7B"}, "gpus"),
    ({"id": 4, "gpus": "1x24GB"}, "model"),
    ({"id": 5, **GOOD, "micro_batch": "2"}, "micro_batch"),
    ({"id": 6, **GOOD, "micro_batch": 2}, None),
    ({"id": 7, **GOOD, "seq_length": 2}, "seq_length"),
    ({"id": 8, **GOOD, "gpus": "0x24GB"}, "gpus"),
    ({"id": 9, **GOOD, "gpus": 24}, "gpus"),
    ({"id": 10, **GOOD, "margin": 2}, "margin"),
    ({"id": 11, **GOOD, "optimizer": "adam"}, "optimizer"),
    ({"id": 12, **GOOD, "method": "qlora", "quantization": "none"}, ""),
    ({"id": 13, **GOOD, "lora_targets": "wq"}, "lora_targets"),
    ({"id": 14, **GOOD, "method": "full"}, None),
    ({"id": 15, **GOOD, "samples": 100, "epochs": 2}, None),
    ({"id": 16, **GOOD, "samples": 1.5}, "samples"),
    ({"id": 17, **GOOD, "samples": 100, "price": "2"}, "price"),
    ({"id": 18, **GOOD, "mean_tokens": 100}, "samples"),
]


@pytest.fixture
def write(tmp_path):
    def lines(cases):
        file = tmp_path / "cases.jsonl"
        file.write_text("".join((case if isinstance(case, str) else json.dumps(case)) + "\n" for case in cases))
        return file

    return lines


def test_good_and_bad_lines_keep_their_order(cli, write):
    answer = cli("estimate", "--batch", write([case for case, _ in MIXED]), "--json")
    assert answer.code == 2
    assert answer.err == ""
    assert len(answer.documents) == len(MIXED)
    for document, (case, field) in zip(answer.documents, MIXED, strict=True):
        assert document["id"] == (case.get("id") if isinstance(case, dict) else None)
        if field is None:
            assert document["peak_allocated_bytes"] > 0
        else:
            assert set(document["error"]) == {"field", "message", "hint"}
            assert document["error"]["field"] == field
            assert document["error"]["message"]


@pytest.mark.parametrize(("case", "field"), [pair for pair in MIXED if pair[1] is not None])
def test_every_bad_line_has_a_hint(cli, write, case, field):
    (document,) = cli("estimate", "--batch", write([case]), "--json").documents
    assert document["error"]["hint"]


def test_a_good_batch_answers_what_the_command_answers(cli, write):
    answer = cli("estimate", "--batch", write([{"id": "a", **GOOD, "micro_batch": 2}]), "--json")
    assert answer.code == 0
    (document,) = answer.documents
    alone = cli("estimate", "--model", "Qwen-7B", "--gpus", "1x24GB", "--micro-batch", "2", "--json").document
    assert document == {"id": "a", **alone}


def test_what_does_not_fit_is_no_bad_line(cli, write):
    answer = cli("estimate", "--batch", write([{"id": 1, **GOOD, "gpus": "1x1GB"}]), "--json")
    assert answer.code == 0
    assert answer.documents[0]["fits"] is False


def test_what_a_line_leaves_out_takes_the_command_s_value(cli, write):
    file = write([{"id": 1}, {"id": 2, "micro_batch": 4}])
    answer = cli("estimate", "--batch", file, "--model", "Qwen-7B", "--gpus", "1x24GB", "--micro-batch", "2", "--json")
    assert [document["config"]["micro_batch"] for document in answer.documents] == [2, 4]


def test_a_line_takes_its_own_samples_and_the_command_s_epochs(cli, write):
    file = write([{"id": 1, **GOOD, "samples": 10}, {"id": 2, **GOOD, "samples": 20, "epochs": 1}])
    first, second = cli("estimate", "--batch", file, "--epochs", "3", "--json").documents
    assert (first["training"]["steps"], second["training"]["steps"]) == (30, 20)


def test_blank_lines_are_passed_by(cli, write):
    answer = cli("estimate", "--batch", write(["", {"id": 1, **GOOD}, "   "]), "--json")
    assert (answer.code, len(answer.documents)) == (0, 1)


def test_a_dash_reads_standard_input(cli):
    answer = cli("estimate", "--batch", "-", "--json", stdin=json.dumps({"id": 1, **GOOD}) + "\n{\n")
    assert answer.code == 2
    assert [document["id"] for document in answer.documents] == [1, None]


def test_an_empty_batch_has_no_answers(cli, write):
    answer = cli("estimate", "--batch", write([]), "--json")
    assert (answer.code, answer.out) == (0, "")


def test_without_json_each_case_is_a_line(cli, write):
    answer = cli("estimate", "--batch", write([case for case, _ in MIXED]))
    assert answer.code == 2
    lines = answer.out.splitlines()
    assert len(lines) == len(MIXED)
    assert lines[0].startswith("1: fits, peak ")
    assert lines[2].startswith("two: error: unknown model 'nope'")


def test_a_line_that_is_no_text_is_refused_and_the_others_are_answered(cli, tmp_path):
    good = json.dumps({"id": 1, **GOOD}).encode()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00\n" + good)
    answer = cli("estimate", "--batch", "bytes", "--json")
    assert answer.code == 2
    bad, fine = answer.documents
    assert "not JSON" in bad["error"]["message"]
    assert fine["id"] == 1


@pytest.mark.parametrize("identity", [None, 0, "x", 1.5, [1], {"run": 7}])
def test_an_id_comes_back_as_it_was(cli, write, identity):
    assert cli("estimate", "--batch", write([{"id": identity, **GOOD}]), "--json").documents[0]["id"] == identity
