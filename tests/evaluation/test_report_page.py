"""`nld-report`: what the page shows is what the run recorded and what the decoder did, and a browser can draw it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from command_helpers import MODES, refusal
from tiny_runs import records_of

from nld_train.commands.report import main
from nld_train.decoding.algorithms.outputs import Progress
from nld_train.report_page.page import page_of
from nld_train.report_page.playback import Recorder, playback
from nld_train.training.metrics.jsonl import Content

pytest.importorskip("plotly", reason="the extra `report` is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.data = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = "data" if dict(attrs).get("id") == "data" else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data += data
        elif self._inside not in ("script", "style"):
            self.shown += data


@pytest.fixture(scope="module")
def written(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run, with its held-out prompts."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert main([str(trained), "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text())


@pytest.fixture(scope="module")
def data(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.data)
    return found


def test_the_page_is_one_file_that_may_load_nothing(page: Page) -> None:
    assert not [(tag, given) for tag, given in page.elements if {"src", "href", "action"} & given.keys()]
    (policy,) = [given["content"] for _, given in page.elements if given.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.split("; ")[0] == "default-src 'none'"
    assert not re.search(r"https?:|\*", policy)


def test_it_shows_the_newest_figures(page: Page, trained: Path) -> None:
    record = [record for record in records_of(trained) if "decoding" in record][-1]
    for mode, figures in record["decoding"]["modes"].items():
        assert f"{mode}{figures['tokens_per_forward']:.2f}{figures['agreement']:.1%}" in page.shown


def test_curves_are_what_the_run_recorded(data: dict[str, Any], trained: Path) -> None:
    records = records_of(trained)
    figures = {figure["layout"]["title"]["text"]: figure for figure in data["figures"]}
    loss = figures["Training loss"]["data"][0]
    assert loss["x"] == [record["tokens"] for record in records]
    assert loss["y"] == [record["loss"] for record in records]
    assert loss["customdata"] == [record["step"] for record in records]
    assert figures["Training loss"]["layout"]["meta"]["borders"] == [{"tokens": 384, "step": 2, "stage": "ar"}]
    decoded = [record for record in records if "decoding" in record]
    speed = {trace["name"]: trace for trace in figures["Decoding: tokens per forward"]["data"]}
    for mode in MODES:
        expected = [record["decoding"]["modes"][mode]["tokens_per_forward"] for record in decoded]
        assert speed[mode]["y"] == expected
    (acceptance,) = figures["Acceptance rate of drafts: linear"]["data"]
    assert acceptance["x"] == [record["tokens"] for record in decoded]
    for position, rates in zip(acceptance["y"], acceptance["z"], strict=True):
        by_position = [record["decoding"]["modes"]["linear"]["acceptance"] for record in decoded]
        assert rates == [found.get(str(position)) for found in by_position]


def test_noisy_curves_have_their_running_mean_and_keep_their_spikes() -> None:
    from nld_train.report_page.curves import MOST_POINTS, figures_of
    from nld_train.training.metrics.registry import MetricTable

    count, spike = 30_000, 12_345
    numbers = {"stage": "ar", "loss": 2.0, "diffusion_loss": None, "grad_norm": 1.0, "learning_rate": 0.1}
    records = [
        {**numbers, "step": step, "tokens": 8 * step, "ar_loss": float(step % 2), "tokens_per_second": 1.0}
        for step in range(1, count + 1)
    ]
    records[spike]["loss"] = 99.0
    records[spike + 1]["loss"] = float("nan")
    traces = figures_of(records, MetricTable())[0]["data"]
    raw, mean = (trace for trace in traces if trace["legendgroup"] == "0")
    assert max(filter(None, raw["y"])) == 99.0
    assert raw["customdata"][list(raw["y"]).index(99.0)] == spike + 1
    assert len(raw["x"]) <= MOST_POINTS + 2
    # A centred mean over a twentieth of 30,000 points: the spike adds 97 / 1501 to those around it.
    assert max(filter(None, mean["y"])) == pytest.approx(2 + 97 / 1501, rel=1e-3)
    assert raw["opacity"] < 0.5
    assert mean.get("opacity") is None


def test_what_is_played_is_what_the_decoder_does(data: dict[str, Any], trained: Path, capsys: Any) -> None:
    """Texts and counts are those of `nld-decode` with the same prompt and settings."""
    from nld_train.commands.decode import main as decode

    played = data["played"]
    assert (played["stage"], played["maxNewTokens"], len(played["prompts"])) == ("joint", 14, 3)
    prompt = played["prompts"][0]
    assert list(prompt["modes"]) == list(MODES)
    for mode, shown in prompt["modes"].items():
        words = [str(trained), "--mode", mode, "--prompt", prompt["text"], "--max-new-tokens", "14", "--json"]
        words += [] if mode == "ar" else ["--block-length", "4"]
        words += ["--threshold", "0.3"] if mode == "diffusion" else []
        capsys.readouterr()
        assert decode(words) == 0
        record = json.loads(capsys.readouterr().out)
        assert (shown["tokens"], shown["forwards"]) == (record["new_tokens"], record["forwards"])
        assert shown["tokensPerForward"] == record["tokens_per_forward"]
        # The page also has the special tokens.
        assert shown["finish"] == record["finish"]
        assert shown["finish"] == "stop" or "".join(shown["pieces"]) == record["text"]


def test_every_forward_is_a_frame(data: dict[str, Any]) -> None:
    for prompt in data["played"]["prompts"]:
        for mode, shown in prompt["modes"].items():
            frames = shown["frames"]
            assert [frame["forwards"] for frame in frames] == list(range(shown["forwards"] + 1)), mode
            counts = [frame["committed"] for frame in frames]
            assert counts == sorted(counts)
            assert counts[-1] == shown["tokens"]
            assert [frame["finished"] for frame in frames] == [False] * (len(frames) - 1) + [True]


def test_drafts_become_tokens_or_are_rejected(data: dict[str, Any]) -> None:
    """After the forward that verifies them: the accepted ones are the next tokens, the others are shown as rejected."""
    rejected = accepted = 0
    for prompt in data["played"]["prompts"]:
        for mode in ("linear", "quadratic"):
            shown = prompt["modes"][mode]
            for before, after in zip(shown["frames"], shown["frames"][1:], strict=False):
                drafts = before["drafts"]
                if not drafts:
                    continue
                good = len(drafts) - len(after["rejected"])
                assert after["rejected"] == drafts[good:]
                committed = range(before["committed"], min(before["committed"] + good, after["committed"]))
                assert [shown["pieces"][index] for index in committed] == drafts[: len(committed)]
                assert all(shown["drafted"][index] for index in committed)
                rejected, accepted = rejected + len(after["rejected"]), accepted + good
            assert shown["draftsAccepted"] <= shown["draftsVerified"]
    assert rejected
    assert accepted


def test_diffusion_shows_its_masks(data: dict[str, Any]) -> None:
    """A position is masked until the pass that commits it, and then never again in its block."""
    for prompt in data["played"]["prompts"]:
        shown = prompt["modes"]["diffusion"]
        for frame in shown["frames"]:
            for index, piece in enumerate(frame["block"]):
                number = frame["committed"] + index
                if number >= shown["tokens"]:
                    continue  # behind the stop
                assert (piece is None) == (shown["passes"][number] > frame["forwards"])


def test_playback_of_hand_written_states() -> None:
    """Linear: a forward drafts, the next one accepts one of two drafts and adds its own token."""
    recorder = Recorder()
    recorder(Progress(0, (7,), committed_by=(0,), drafted=(False,)))
    ended = Progress(
        0,
        (7, 8, 5),
        drafts=(8, 9),
        rejected=(9,),
        finish="length",
        forwards=2,
        committed_by=(0, 2, 2),
        drafted=(False, True, False),
    )
    recorder(ended)
    shown = playback("linear", recorder.states[0], lambda ids: "".join(chr(97 + token) for token in ids))
    assert [(frame["what"], frame["committed"]) for frame in shown["frames"]] == [
        ("prefill", 1),
        ("draft", 1),
        ("verify", 3),
    ]
    assert shown["frames"][1]["drafts"] == ["i", "j"]
    assert shown["frames"][2]["rejected"] == ["j"]
    assert (shown["draftsVerified"], shown["draftsAccepted"]) == (2, 1)
    assert shown["pieces"] == ["h", "i", "f"]


def test_texts_cannot_break_the_page(trained: Path, tmp_path: Path) -> None:
    text = "</script><script>document.title='x'</script><!-- \u202e"
    assert main([str(trained), "--output", str(tmp_path / "p.html"), "--prompt", text, "--max-new-tokens", "2"]) == 0
    found = Page((tmp_path / "p.html").read_text())
    assert [tag for tag, _ in found.elements].count("script") == 3
    assert json.loads(found.data)["played"]["prompts"][0]["text"] == text.replace("\u202e", "\\u202e")


def test_curves_are_shown_where_nothing_can_be_decoded(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run without checkpoints, and said in the page and on the console."""
    shutil.copy(trained / "metrics.jsonl", tmp_path)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"No text was decoded: {tmp_path}: holds no checkpoint")
    found = Page((tmp_path / "report.html").read_text())
    assert "No text was decoded" in found.shown
    assert json.loads(found.data)["played"] is None


def test_a_run_without_ar_predictions_has_nothing_to_agree_with(tmp_path: Path) -> None:
    """As with `diffusion.clean=block`, where diffusion is decoded alone."""
    decoding = {"modes": {"diffusion": {"tokens_per_forward": 2.5}}}
    record = {"step": 7, "tokens": 70, "stage": "joint", "decoding": decoding}
    shown = Page(page_of(tmp_path, Content([record], []), [], {}, "")).shown
    assert "diffusion2.50--" in shown


def test_refusals(trained: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is no run" in refusal(capsys, main, tmp_path)
    words = (trained, "--output", tmp_path / "p.html")
    assert "--prompt: nothing is decoded" in refusal(capsys, main, *words, "--no-decoding", "--prompt", "x")
    assert "--threshold" in refusal(capsys, main, *words, "--threshold", "2")
    assert "--prompts gone.jsonl" in refusal(capsys, main, *words, "--prompts", "gone.jsonl")
    too_long = refusal(capsys, main, *words, "--prompt", "seven", "--max-new-tokens", "4000")
    assert "96" in too_long
    monkeypatch.setattr("nld_train.report_page.command.find_spec", lambda name: None)
    assert "pip install 'nld-train[report]'" in refusal(capsys, main, *words)
    assert list(tmp_path.iterdir()) == []


def _in_browser(page: Path, address: str, *words: str) -> str:
    """The document after its scripts have run, as Chromium prints it."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=20000", "--window-size=1400,2600"]
    done = subprocess.run(
        [*command, *words, f"{page.as_uri()}#{address}"], capture_output=True, text=True, timeout=180, check=True
    )
    return done.stdout


def _tokens_by_class(document: str, mode: str) -> dict[str, list[str]]:
    """In one mode's box, the texts of tokens by their first class."""
    (box,) = re.findall(rf'<div class="mode" data-mode="{mode}">(.*?)</div></div>', document, re.DOTALL)
    found: dict[str, list[str]] = {}
    for name, text in re.findall(r'<span class="token (\w+)[^"]*"[^>]*>([^<]*)</span>', box):
        found.setdefault(name, []).append(text)
    return found


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_draws_it(written: Path, data: dict[str, Any]) -> None:
    """Every figure is drawn without an error or a refused request, and the slider's place decides what is shown."""
    document = _in_browser(written, "prompt=1&forward=3&over=steps", "--dump-dom")
    (body,) = re.findall(r"<body([^>]*)>", document)
    assert "data-error" not in body
    assert f'data-drawn="{len(data["figures"])}"' in body
    assert document.count('class="main-svg"') >= len(data["figures"])
    assert ">steps<" in document
    assert re.search(r'<output id="count">3</output>', document)
    modes = data["played"]["prompts"][1]["modes"]
    diffusion = _tokens_by_class(document, "diffusion")
    frame = max(
        (frame for frame in modes["diffusion"]["frames"] if frame["forwards"] <= 3), key=lambda f: f["forwards"]
    )
    assert len(diffusion.get("masked", [])) == frame["block"].count(None)
    linear = _tokens_by_class(document, "linear")
    assert len(linear["waiting"]) == len(modes["linear"]["frames"][3]["drafts"])
    assert len(_tokens_by_class(document, "ar")["predicted"]) == modes["ar"]["frames"][3]["committed"]


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_colours(written: Path, tmp_path: Path) -> None:
    """On a screenshot: the green of accepted drafts, and curves in the first two colours."""
    from matplotlib import image
    from matplotlib.colors import to_rgb

    picture = tmp_path / "page.png"
    _in_browser(written, "forward=2", f"--screenshot={picture}")
    pixels = image.imread(picture)[..., :3].reshape(-1, 3)
    for colour in ("#fff0b3", "#e6e6e6", "#1f77b4"):
        close = (abs(pixels - to_rgb(colour)).max(1) < 0.02).sum()
        assert close > 50, colour
