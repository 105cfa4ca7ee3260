"""export.push, with the real hub client against a small hub on the loopback interface: there and back again."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from checkpoints.errors import BadInput
from checkpoints.source import resolve
from export import pte as exporter
from export import push as door
from export.evaluate import evaluate
from export.generate import generate
from export.hub import parcel as parcels
from export.hub.origin import find_origin
from export.pte import export_pte
from export.ptefile.find import resolve_file
from export.push import Pushed, push
from tests.bench.test_result import make
from tests.hub import COMMIT, READER, WRITER, Hub, Repo, client_environment, serving, sha256, use_hub

REPO = "someone/tiny"
QUESTION = "What is the capital of France?"
Push = Callable[..., Pushed]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """phi4-tiny, verified, with other options than the defaults; its kept checkpoint beside it; not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    options: dict[str, Any] = {
        "context": 256,
        "prefill_chunk": 32,
        "kv_cache": "fp32",
        "group_size": 64,
        "head_bits": 8,
    }
    return export_pte("phi4-tiny", out=folder / "tiny.pte", save_quantized=folder / "kept", **options).path


@pytest.fixture
def pte(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(exported.parent, tmp_path / "model")
    return tmp_path / "model" / exported.name


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving({}) as server:
        yield server


@pytest.fixture
def send(hub: Hub, pte: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Push:
    """push of that file to that hub."""

    def run(token: str | None = WRITER, endpoint: str = hub.endpoint, **flags: Any) -> Pushed:
        use_hub(monkeypatch, tmp_path, endpoint, token)
        return push(pte, **({"repo": REPO} | flags))

    return run


def refused(send: Push, *parts: str, **flags: Any) -> None:
    with pytest.raises(BadInput) as problem:
        send(**flags)
    for part in parts:
        assert part in str(problem.value)
    assert "\n" not in str(problem.value)


def test_there_and_back_again(send: Push, hub: Hub, pte: Path) -> None:
    pushed = send(quantized=pte.parent / "kept")
    repo = hub.repos[REPO]
    assert repo.private and pushed.url == f"{hub.endpoint}/{REPO}" and pushed.commit == repo.branches["main"]
    files = repo.tree("main")
    expected = {path.name for path in pte.parent.iterdir() if path.is_file()}
    kept = {f"quantized/{path.name}" for path in (pte.parent / "kept").iterdir()}
    assert files.keys() == expected | kept | {"README.md", ".gitattributes"}
    assert all(files[name] == (pte.parent / name).read_bytes() for name in expected)
    assert {file.path: file.sha256 for file in pushed.files} == {
        path: sha256(data) for path, data in files.items() if path != ".gitattributes"
    }
    path = resolve_file(f"hf:{REPO}")
    assert path.parent != pte.parent and not (path.parent / "quantized").exists()
    assert generate(path, QUESTION).text == generate(pte, QUESTION).text
    again = send(quantized=pte.parent / "kept")
    assert again.commit is None and all(file.there for file in again.files) and len(repo.trees) == 2


def test_from_the_kept_checkpoint_comes_the_same_file(send: Push, hub: Hub, pte: Path, tmp_path: Path) -> None:
    send(quantized=pte.parent / "kept")
    options: dict[str, Any] = {"context": 256, "prefill_chunk": 32, "kv_cache": "fp32"}
    (tmp_path / "again").mkdir()
    found = export_pte(f"hf:{REPO}/quantized", out=tmp_path / "again/tiny.pte", verify=False, **options)
    assert found.path.read_bytes() == pte.read_bytes()


def test_a_branch_and_public(send: Push, hub: Hub) -> None:
    assert send(public=True, revision="v1").url == f"{hub.endpoint}/{REPO}/tree/v1"
    repo = hub.repos[REPO]
    assert not repo.private and "tiny.pte" in repo.tree("v1") and "tiny.pte" not in repo.tree("main")
    assert f"hf:{REPO}@v1" in repo.tree("v1")["README.md"].decode()
    refused(send, "everyone can read it", "--public")
    repo.private = True
    refused(send, "is private", public=True)


def test_other_files_stay(send: Push, hub: Hub) -> None:
    others = {"notes.txt": b"mine", "other/model.pte": b"x"}
    hub.repos[REPO] = Repo(dict(others), private=True)
    send()
    files = hub.repos[REPO].tree("main")
    assert all(files[name] == data for name, data in others.items()) and "tiny.pte" in files


def test_names_that_are_taken(send: Push, hub: Hub) -> None:
    hub.repos[REPO] = Repo({"README.md": b"# mine\n"}, private=True)
    refused(send, "has a README.md that is not the card of tiny.pte", "--replace-card")
    assert hub.repos[REPO].tree("main") == {"README.md": b"# mine\n"} and not hub.sent
    send(replace_card=True)
    send(license="apache-2.0")  # its own card
    assert b"apache-2.0" in hub.repos[REPO].tree("main")["README.md"]
    hub.repos[REPO] = Repo({"b.pte": b"x", "tokenizer.json": b"{}"}, private=True)
    refused(send, "has b.pte with another tokenizer.json", "--revision")


def test_what_an_older_file_of_this_name_had(send: Push, hub: Hub, pte: Path) -> None:
    """A chat template that the new one does not have would be taken for its own: it goes, but not another model's."""
    send()
    hub.repos[REPO].add("main", {"chat_template.jinja": b"old", "tokenizer.model": b"old", "tiny.pte": b"old"})
    again = send()
    files = hub.repos[REPO].tree("main")
    assert "chat_template.jinja" not in files and "tokenizer.model" not in files
    assert files["tiny.pte"] == pte.read_bytes() and not next(f.there for f in again.files if f.path == "tiny.pte")
    hub.repos[REPO] = Repo({"chat_template.jinja": b"mine"}, private=True)
    refused(send, "has a chat_template.jinja, which tiny.pte was not exported with")
    assert hub.repos[REPO].tree("main") == {"chat_template.jinja": b"mine"}


def test_tokens(send: Push, hub: Hub) -> None:
    refused(send, "needs a token of the hub", "hf auth login", token=None)
    assert hub.asked == []
    refused(send, "does not know the token", "hf auth login", token="hf_wrong")
    refused(send, f"may not write to {REPO}", "you must use a write token", token=READER)
    hub.repos[REPO] = Repo({}, private=True)
    refused(send, f"may not write to {REPO}", token=READER)
    assert not hub.sent and hub.repos[REPO].tree("main") == {}
    refused(send, f"the upload to {REPO} stopped", "run again", endpoint="http://127.0.0.1:9")
    for repo in ("tiny", "a/b/c", "hf:a/b", "a--b/c"):
        refused(send, "is not of the form USER/NAME", repo=repo)
    refused(send, "--revision 'a/b' cannot be fetched again", revision="a/b")


def test_an_interrupted_upload_goes_on(send: Push, hub: Hub, pte: Path, tmp_path: Path) -> None:
    """Killed while the kept checkpoint's weights are on their way: the .pte, which has arrived, is not sent again."""
    kept = pte.parent / "kept"
    slow, whole = sha256((kept / "model.safetensors").read_bytes()), sha256(pte.read_bytes())
    hub.stall.add(slow)
    command = [sys.executable, "-m", "export.push", str(pte), "--repo", REPO, "--quantized", str(kept)]
    environment = client_environment(tmp_path, hub.endpoint, HF_TOKEN=WRITER)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not (hub.stalled.wait(0.1) and whole in hub.sent):
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)
    assert hub.repos[REPO].tree("main").keys() == {".gitattributes"}
    hub.stall.clear()
    hub.sent.clear()
    assert send(quantized=kept).commit == hub.repos[REPO].branches["main"]
    assert hub.sent == [slow]
    assert hub.repos[REPO].tree("main")["tiny.pte"] == pte.read_bytes()


def test_a_file_that_changes_meanwhile(send: Push, hub: Hub, pte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "HELD", 1 << 20)  # larger ones are read again when they are sent
    from export.hub import send as sending

    check = sending._check_taken

    def change(*arguments: Any) -> None:
        check(*arguments)
        pte.write_bytes(pte.read_bytes()[:-1] + b"\1")

    monkeypatch.setattr(sending, "_check_taken", change)
    refused(send, "tiny.pte changed while it was sent", "run again")
    assert hub.repos[REPO].tree("main").keys() == {".gitattributes"}


def test_nothing_is_sent_of_what_is_not_whole(send: Push, hub: Hub, pte: Path) -> None:
    manifest = json.loads(pte.with_suffix(".json").read_text())

    def write(**changes: Any) -> None:
        pte.with_suffix(".json").write_text(json.dumps(manifest | changes))

    write(verification=None)
    refused(send, "was never verified (--no-verify)", "--unverified")
    assert "**Not known: the file was never verified.**" in send(unverified=True, dry_run=True).card
    write(verification=manifest["verification"] | {"passed": False, "failures": ["logits are far"]})
    refused(send, "failed its verification")
    assert "**It failed.** logits are far." in send(unverified=True, dry_run=True).card
    write(file=manifest["file"] | {"sha256": "0" * 64})
    refused(send, "has the sha256", "tiny.json says 000000000000")
    write(file=manifest["file"] | {"name": "other.pte"})
    refused(send, "is of another file")
    write(files=manifest["files"] | {"../kept/config.json": "0" * 64})
    refused(send, "config.json does not exist, tiny.json lists it")
    write(planned={})
    refused(send, "tiny.json is no manifest of tiny.pte: KeyError 'kv_cache_bytes'")
    write()
    settings = pte.parent / "tokenizer_config.json"
    settings.write_bytes(settings.read_bytes() + b" ")
    refused(send, "tokenizer_config.json has the sha256")
    settings.unlink()
    refused(send, "tokenizer_config.json does not exist")
    pte.with_suffix(".json").unlink()
    refused(send, "tiny.json does not exist")
    pte.write_bytes(b"nothing")
    refused(send, "is not an ExecuTorch program")
    assert hub.asked == []


def test_another_files_checkpoint(send: Push, pte: Path, tmp_path: Path) -> None:
    refused(send, "is not a folder", quantized=tmp_path / "none")
    kept = pte.parent / "kept"
    manifest = json.loads(pte.with_suffix(".json").read_text())
    for changes, words in (
        ({"recipe": "8da4w g32, embedding int8, lm_head int4"}, "it is 8da4w g64"),
        ({"config": manifest["config"] | {"vocab_size": 7}}, "its vocab_size is 2048, the file's 7"),
        ({"calibration": {"method": "gptq"}}, "its levels were chosen otherwise"),
    ):
        pte.with_suffix(".json").write_text(json.dumps(manifest | changes))
        refused(send, f"--quantized {kept} is not what tiny.pte is of", words, quantized=kept)
    refused(send, "is not quantized", quantized=resolve("phi4-tiny").folder)


def test_measurements(send: Push, pte: Path, tmp_path: Path) -> None:
    """Of this file alone, beside it or named; a quality that was measured of other bytes is left out and said so."""
    result = make(12.5)
    result["device"] |= {"serial": "R58-SECRET"}
    result["model"] |= {"sha256": sha256(pte.read_bytes()), "size_bytes": pte.stat().st_size}
    (pte.parent / "phone.json").write_text(json.dumps(result))
    evaluate([str(pte)], "phi4-tiny", window=32, limit=1, save=True)
    pushed = send(dry_run=True)
    assert "Phone, Android 15" in pushed.card and "| 12.5" in pushed.card and "SECRET" not in pushed.card
    record = json.loads(pte.with_suffix(".evaluation.json").read_text())["perplexity"]["quality"]
    assert f"{record['perplexity']['value']:,.2f}" in pushed.card and f"{record['kl']['value']:.4f}" in pushed.card
    assert "tiny.evaluation.json" in {file.path for file in pushed.files} and pushed.notes == ()
    assert "phone.json" not in {file.path for file in pushed.files}

    result["model"]["sha256"] = "0" * 64
    (pte.parent / "phone.json").write_text(json.dumps(result))
    refused(send, "phone.json measured another file than", bench=[pte.parent / "phone.json"])
    stale = json.loads(pte.with_suffix(".evaluation.json").read_text())
    stale["file"]["sha256"] = "0" * 64
    pte.with_suffix(".evaluation.json").write_text(json.dumps(stale))
    pushed = send(dry_run=True)
    assert "Phone, Android" not in pushed.card and "perplexity | nll" not in pushed.card
    assert pushed.notes == ("tiny.evaluation.json is of other bytes than tiny.pte has now, and left out",)


def test_whose_licence(send: Push, hub: Hub, pte: Path) -> None:
    """The checkpoint's own card says it, of a checkpoint of the hub the hub; else nobody, and nothing is public."""
    manifest = json.loads(pte.with_suffix(".json").read_text())
    del manifest["checkpoint"]["card"]
    pte.with_suffix(".json").write_text(json.dumps(manifest))
    pushed = send(dry_run=True)
    assert "license:" not in pushed.card and pushed.notes == (
        "nobody says the licence of phi4-tiny: --license ID does",
    )
    refused(send, "nobody says the licence of phi4-tiny", "nothing is made public", public=True)
    assert "`mit`, as the publisher says" in send(dry_run=True, license="mit").card

    manifest["checkpoint"] |= {"name": "big/base", "kind": "hub", "revision": COMMIT}
    pte.with_suffix(".json").write_text(json.dumps(manifest))
    assert "the hub was asked for the card of big/base: " in send(dry_run=True).notes[0]
    readme = b"---\nlicense: other\nlicense_name: theirs\nlicense_link: LICENSE\nlanguage: [en, de]\n---\n# x"
    hub.repos["big/base"] = Repo({"README.md": readme})
    data = ModelCard(send(dry_run=True).card).data.to_dict()
    assert (data["license"], data["license_name"], data["language"]) == ("other", "theirs", ["en", "de"])
    assert (data["base_model"], data["base_model_relation"]) == ("big/base", "quantized")
    assert data["license_link"] == f"{hub.endpoint}/big/base/blob/{COMMIT}/LICENSE"


def test_the_base_model_of_a_kept_calibrated_checkpoint() -> None:
    record = {"checkpoint": {"name": f"big/base@{COMMIT} + 1 * lora", "adapters": []}}
    checkpoint = {"name": "KEPT", "kind": "folder", "revision": None, "card": {}}
    origin = find_origin({"checkpoint": checkpoint, "calibration": record}, "mit", None)
    assert (origin.base_model, origin.license) == ("big/base", "mit")


def printed_commands(card: str) -> list[list[str]]:
    """What the card says to type to make the file."""
    section = card.partition("## How it was made")[2].partition("## ")[0]
    return [shlex.split(line) for line in section.splitlines() if line.startswith("    ")]


def test_the_printed_command_makes_the_file_again(send: Push, pte: Path, tmp_path: Path) -> None:
    [[*start, module]] = [words[:3] for words in printed_commands(send(dry_run=True).card)]
    [words] = [words[3:] for words in printed_commands(send(dry_run=True).card)]
    assert (start, module) == (["python", "-m"], "export.pte") and words[-2:] == ["--out", "tiny.pte"]
    assert exporter.main([*words[:-1], str(tmp_path / "tiny.pte"), "--no-verify"]) == 0
    assert (tmp_path / "tiny.pte").read_bytes() == pte.read_bytes()


def test_dry_run_and_command(pte: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(pte), "--repo", REPO, "--dry-run"]
    assert door.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "How it was made" in printed and "nothing was sent" in printed and "base_model" not in printed
    assert door.main([*arguments, "--json", "--base-model", "a/b"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["url"] is None and {file["path"] for file in found["files"]} >= {"tiny.pte", "README.md"}
    data = ModelCard(found["card"]).data.to_dict()
    assert (data["license"], data["language"], data["library_name"]) == ("mit", "en", "executorch")
    assert (data["base_model"], data["base_model_relation"]) == ("a/b", "quantized")
    assert door.main([*arguments, "--json", "--base-model", "a/b"]) == 0
    assert json.loads(capsys.readouterr().out)["card"] == found["card"]
    assert hub.asked == []
