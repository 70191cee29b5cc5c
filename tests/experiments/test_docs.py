"""Numbers of the documents come from files of results, and cannot drift from them."""

import json
import re
import runpy
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import pytest
from PIL import Image

from lightning_is.experiments.docs import Finding, Results, fill, publish, read
from lightning_is.experiments.docs.markers import MarkerError, filled, origin
from lightning_is.experiments.docs.publishing import command_line, commit
from lightning_is.experiments.docs.results import flat, write

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOUND = Results(
    title="two methods",
    command="python scripts/compare.py data.n_train=20000 budget=1.5s x=[1,2] y=3k",
    commit="0123456789abcdef",
    versions={"torch": "2.6.0"},
    machine="2 cores, a processor",
    date="2026-01-31",
    columns=["method", "loss"],
    rows=[["trim", "0.2"], ["a|b", "0.4"]],
    note="A note.",
    values={"trim": {"loss": 0.213, "steps": 3}, "share": 0.5},
)


def look_up(name: str) -> Results:
    known = {"found": FOUND, "bare": replace(FOUND, columns=[], rows=[])}
    known["more"] = replace(FOUND, rows=[["uniform", "1"]], commit="unknown")
    known["printed"] = replace(FOUND, columns=["report"], rows=[["a  | b"], ["  c"]])
    known["other"] = replace(FOUND, columns=["method", "error"])
    if name not in known:
        raise LookupError(f"There are: {', '.join(known)}.")
    return known[name]


def page(text: str) -> str:
    return filled(text, "page.md", look_up)[0]


# The documents themselves


def test_every_number_in_the_documents_is_that_of_its_results():
    assert fill(ROOT, check=True) == []


def test_every_file_of_results_can_be_read_and_is_shown():
    shown = "".join(path.read_text() for path in PAGES)
    for path in (ROOT / "docs" / "results").glob("*.json"):
        read(path)
        assert re.search(rf"<!-- (table|text|n): [^>]*\b{path.stem}\b", shown), path


def test_what_the_documents_link_to_is_there_and_small():
    for path in PAGES:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if not link.startswith("http"):
                assert (path.parent / link).exists(), f"{path}: {link}"
    for figure in (ROOT / "docs" / "figures").glob("*"):
        assert figure.stat().st_size < 400_000, figure


# Markers


def test_a_number_is_written_in_its_format_and_no_other_time():
    text = "It is <!-- n: found.trim.loss:.2f -->?<!-- / --> of <!-- n: found.share:.0% --><!-- / -->."  # noqa: E501
    wanted = "It is <!-- n: found.trim.loss:.2f -->0.21<!-- / --> of <!-- n: found.share:.0% -->50%<!-- / -->."  # noqa: E501
    done, changes = filled(text, "page.md", look_up)
    assert done == wanted
    assert changes == [(1, "n: found.trim.loss:.2f"), (1, "n: found.share:.0%")]
    assert filled(done, "page.md", look_up) == (done, [])


def test_a_number_without_a_format_is_written_as_it_is():
    assert ">3<" in page("a <!-- n: found.trim.steps -->x<!-- / -->")


def test_a_comment_may_be_wrapped():
    text = "a <!-- n:\n  found.trim.loss:.1f -->x<!-- / --> b"
    assert page(text) == text.replace("x", "0.2")


def test_a_table_says_where_it_comes_from():
    text = "before\n\n<!-- table: found -->\nold\n<!-- end -->\n\nafter\n"
    done, changes = filled(text, "page.md", look_up)
    assert done == (
        "before\n\n<!-- table: found -->\n\n"
        "| method | loss |\n| --- | ---: |\n| trim | 0.2 |\n| a\\|b | 0.4 |\n\n"
        "A note.\n\n"
        f"two methods: `{FOUND.command}` at commit `0123456789`; "
        "2026-01-31, torch 2.6.0, 2 cores, a processor.\n\n"
        "<!-- end -->\n\nafter\n"
    )
    assert changes == [(3, "table: found")]
    assert filled(done, "page.md", look_up) == (done, [])


def test_a_table_takes_the_rows_of_several_results():
    done = page("<!-- table: found more -->\n<!-- end -->")
    assert done.index("| trim |") < done.index("| uniform |")
    assert done.count("| method |") == 1
    assert done.count("A note.") == 1
    assert "`0123456789`" in done
    assert "at an unknown commit" in done


def test_a_text_is_shown_as_it_was_printed_and_says_where_it_comes_from():
    text = "<!-- text: printed -->\n<!-- end -->\n"
    done, changes = filled(text, "page.md", look_up)
    assert done == (
        "<!-- text: printed -->\n\n```text\na  | b\n  c\n```\n\n"
        f"two methods: `{FOUND.command}` at commit `0123456789`; "
        "2026-01-31, torch 2.6.0, 2 cores, a processor.\n\n<!-- end -->\n"
    )
    assert changes == [(1, "text: printed")]
    assert filled(done, "page.md", look_up) == (done, [])


def test_changed_code_is_told():
    assert "`0123456789` with changes;" in origin(
        replace(FOUND, commit="0123456789abcdef-dirty")
    )


@pytest.mark.parametrize(
    "code",
    [
        "```\n<!-- table: no -->\n```\n",
        "~~~html\n<!-- n: no.a -->\n```\n~~~\n",
        "Write `<!-- n: no.a -->` before it.",
        "```\nand no end: <!-- n: no.a -->",
    ],
)
def test_code_is_left_as_it_is(code):
    text = f"a <!-- n: found.share -->0.5<!-- / -->\n\n{code}"
    assert filled(text, "page.md", look_up) == (text, [])


def test_other_comments_are_left_as_they_are():
    text = "<!-- a note: for whoever edits this; the end -->\n<!-- n -->\n"
    assert filled(text, "page.md", look_up) == (text, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\na <!-- n: no.a -->1<!-- / -->", r"^page.md:2: .*got 'no'\. There are: fou"),
        ("<!-- table: no -->\n<!-- end -->", r"^page.md:1: .*got 'no'\. There are"),
        ("a <!-- n: found.a -->1<!-- / -->", r"got 'a' of 'found'.*: trim\.loss, trim"),
        ("a <!-- n: found.trim -->1<!-- / -->", r"got 'trim' of 'found'"),
        ("a <!-- n: found -->1<!-- / -->", r"got '' of 'found'"),
        (
            "a <!-- n: found.share:x4 -->1<!-- / -->",
            r"got 'x4' for 0\.5: .*Write :\.2f",
        ),
        ("<!-- n: found.share -->1<!-- / -->", "not begin it"),
        ("a\n  <!-- n: found.share -->1<!-- / -->", "^page.md:2: .*not begin it"),
        ("a <!-- n: found.share -->\n1<!-- / -->", "within one line"),
        ("\na <!-- n: found.share -->1", "^page.md:2: .*then the end of the page"),
        (
            "a <!-- n: found.share -->1\n<!-- n: found.share -->2<!-- / -->",
            "^page.md:1: .*got 'n' and then <!-- n --> in line 2",
        ),
        ("<!-- table: found -->\n<!-- / -->", "got 'table' and then <!-- / -->"),
        ("a\n\n<!-- end -->", "^page.md:3: .*got 'end' and no beg"),
        ("a <!-- / -->", "^page.md:1: .*got '/' and no beg"),
        ("a\n<!-- n: found.share", "^page.md:2: A comment must end"),
        ("a <!-- table: found -->\n<!-- end -->", "lines of their own"),
        ("<!-- table: found -->\n<!-- end --> a", "lines of their own"),
        (
            "<!-- table: found other -->\n<!-- end -->",
            r"same columns.*\('method', 'err",
        ),
        ("<!-- table: bare -->\n<!-- end -->", r"and some, got \(\)"),
        ("<!-- table: -->\n<!-- end -->", "got no name"),
        ("a <!-- text: printed -->\n<!-- end -->", "lines of their own"),
        ("<!-- text: found -->\n<!-- end -->", "one column.*'method', 'loss'"),
        ("<!-- text: no -->\n<!-- end -->", r"got 'no'\. There are"),
    ],
)
def test_a_marker_that_cannot_be_filled_in_is_refused_by_file_and_line(text, message):
    with pytest.raises(MarkerError, match=message):
        page(text)


# The program


def project(folder: Path, text: str) -> Path:
    (folder / "docs" / "results").mkdir(parents=True)
    (folder / "README.md").write_text("No numbers.\n")
    (folder / "docs" / "page.md").write_text(text)
    write(FOUND, folder / "docs" / "results" / "found.json")
    return folder / "docs" / "page.md"


def test_pages_are_filled_in_once_and_then_agree(tmp_path):
    target = project(tmp_path, "a <!-- n: found.share -->1<!-- / -->\n")
    before = target.read_text()
    found = ["docs/page.md:1: n: found.share"]
    assert fill(tmp_path, check=True) == found
    assert target.read_text() == before
    assert fill(tmp_path) == found
    assert target.read_text() == "a <!-- n: found.share -->0.5<!-- / -->\n"
    assert fill(tmp_path) == []


def test_one_wrong_page_leaves_all_as_they_were(tmp_path):
    text = "a <!-- n: found.share -->1<!-- / -->\n"
    target = project(tmp_path, text)
    (tmp_path / "docs" / "z.md").write_text("a <!-- n: lost.share -->1<!-- / -->\n")
    with pytest.raises(ValueError, match=r"^docs/z\.md:1: .*There are: found\."):
        fill(tmp_path)
    assert target.read_text() == text


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (
            "a <!-- n: found.share -->1<!-- / -->",
            1,
            "page.md:1: n: found.share differs",
        ),
        ("a <!-- n: found.share -->0.5<!-- / -->", 0, ""),
        ("a <!-- n: found.share -->1", 1, "Add the other half"),
    ],
)
def test_the_check_fails_and_names_what_differs(
    text, status, said, tmp_path, monkeypatch, capsys
):
    target = project(tmp_path, text)
    (tmp_path / "scripts").mkdir()
    program = tmp_path / "scripts" / "docs.py"
    program.write_text((ROOT / "scripts" / "docs.py").read_text())
    monkeypatch.setattr(sys, "argv", [str(program), "--check"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(program), run_name="__main__")
    assert done.value.code == status
    assert said in "".join(capsys.readouterr())
    assert target.read_text() == text


# Files of results


def test_results_are_read_as_they_were_written(tmp_path):
    write(FOUND, tmp_path / "found.json")
    assert read(tmp_path / "found.json") == FOUND
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": 3}, "a line of text as `title`, got 3"),
        ({"note": "a\nb"}, "a line of text as `note`"),
        ({"date": "yesterday"}, "a `date`, got 'yesterday'. Write 2026"),
        ({"versions": {"torch": 2}}, "name `versions` by their packages"),
        ({"columns": "ab"}, "have `columns` of text"),
        ({"rows": "ab"}, "a list of `rows`"),
        ({"rows": [["a", "b"], ["c"]]}, r"row 1: .*have 2 cells.*got \['c'\]"),
        ({"rows": [["a", 0.5]]}, "row 0: "),
        ({"values": 3}, "finite numbers in `values`"),
        ({"values": {"a": {"b": None}}}, r"finite numbers in `values\.a\.b`, got None"),
        ({"values": {"a": float("nan")}}, "finite numbers"),
        ({"values": {"a": True}}, "finite numbers"),
        ({"values": {"a.b": 1}}, "letters and digits, got 'a.b'"),
        ({"command": "x 'y"}, "a `command` for a shell, got .*Close its quotes"),
        ({"more": 1}, "have the keys title, "),
    ],
)
def test_what_is_no_file_of_results_is_refused(change, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(asdict(FOUND) | change))
    with pytest.raises(ValueError, match=rf"x\.json.*{message}"):
        read(path)


@pytest.mark.parametrize("text", ["[]", "{}", "3"])
def test_other_json_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="must have the keys"):
        read(tmp_path / "x.json")


def test_broken_json_is_refused_by_its_line(tmp_path):
    (tmp_path / "x.json").write_text('{\n"title": \n}')
    with pytest.raises(ValueError, match=r"x\.json:3: Results must be JSON"):
        read(tmp_path / "x.json")


def test_what_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        write(replace(FOUND, values={"a": float("inf")}), tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_values_are_found_by_their_paths():
    assert flat(FOUND.values) == {"trim.loss": 0.213, "trim.steps": 3, "share": 0.5}
    assert FOUND.value("trim.steps") == 3


def test_prose_may_quote_the_numbers_that_a_command_sets():
    shown = page("\na <!-- n: found.setting.data.n_train:,d --><!-- / --> images")
    assert shown.endswith("-->20,000<!-- / --> images")
    assert FOUND.value("setting.budget") == 1.5
    with pytest.raises(KeyError, match=r"share, setting\.data\.n_train, setting\.budg"):
        FOUND.value("setting.x")


# Publishing


def test_a_finding_is_published_with_all_that_tells_where_it_comes_from(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["/a/scripts/picked.py", "seed=1", "out=/a"])
    (tmp_path / "results").mkdir()
    Image.effect_noise((60, 40), 90).convert("RGB").save(tmp_path / "big.png")
    finding = Finding("t", ("a", "b"), [("1", "2")], "n", {"x": 0.5})
    picture = tmp_path / "big.png"
    path = publish("mine", finding, tmp_path, figure=picture, more={"two": picture})
    found = read(path)
    assert path == tmp_path / "results" / "mine.json"
    assert (found.title, found.columns, found.rows) == ("t", ["a", "b"], [["1", "2"]])
    assert (found.note, found.values) == ("n", {"x": 0.5})
    assert found.command == "python scripts/picked.py seed=1"
    assert found.commit == commit()
    assert {"python", "torch", "lightning"} <= set(found.versions)
    assert re.fullmatch(r"\d+ cores?, .+", found.machine)
    assert abs((date.today() - date.fromisoformat(found.date)).days) <= 1
    for name in ("mine.png", "mine_two.png"):
        with Image.open(tmp_path / "figures" / name) as shown:
            assert shown.size == (60, 40)
            assert shown.mode == "P"


@pytest.mark.parametrize("name", ["", "a b", "A", "../a", "a.json"])
def test_a_name_that_is_none_is_refused(name, tmp_path):
    (tmp_path / "results").mkdir()
    with pytest.raises(ValueError, match="`publish` must be a name"):
        publish(name, Finding("t"), tmp_path, command="c")


def test_results_are_published_in_a_clone_alone(tmp_path):
    with pytest.raises(ValueError, match="got no such folder"):
        publish("a", Finding("t"), tmp_path / "docs", command="c")


def test_a_command_says_what_was_done_and_not_where(tmp_path):
    words = ["a/scripts/x.py", "seeds=[0,1]", "jobs=2", f"data.path={tmp_path}"]
    words += ["+out=b", "hydra.run.dir=c"]
    assert command_line(words) == "python scripts/x.py 'seeds=[0,1]' jobs=2"
    named = ["scripts/x.py", "data=text", "data.path=owner/name"]
    assert command_line(named) == "python scripts/x.py data=text data.path=owner/name"


def test_what_was_made_by_parts_names_the_commit_of_each(tmp_path):
    (tmp_path / "results").mkdir()
    made = ["aaaaaaaaaaaa", "bbbbbbbbbbbb-dirty", "aaaaaaaaaaaa"]
    path = publish("a", Finding("t"), tmp_path, command="c", commits=made)
    assert "at commit `aaaaaaaaaa` and commit `bbbbbbbbbb` with changes;" in origin(
        read(path)
    )


def clone(folder: Path) -> Path:
    def git(*words: str) -> None:
        own = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", *own, *words]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603

    (folder / "conf").mkdir(parents=True)
    (folder / "conf" / "a.yaml").write_text("a: 1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    return folder


def test_the_commit_is_that_of_the_code(tmp_path):
    root = clone(tmp_path / "a")
    plain = commit(root)
    assert re.fullmatch("[0-9a-f]{40}", plain)
    (root / "README.md").write_text("documents determine nothing")
    assert commit(root) == plain
    (root / "conf" / "b.yaml").write_text("b: 1\n")
    assert commit(root) == f"{plain}-dirty"


def test_without_a_clone_the_commit_is_unknown(tmp_path, monkeypatch):
    root = clone(tmp_path / "a")
    assert commit(root / "conf") == "unknown"  # a clone of something around it
    assert commit(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", "")
    assert commit(root) == "unknown"


def test_the_code_that_the_documents_show_publishes(tmp_path, monkeypatch):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})  # noqa: S102
    found = read(tmp_path / "docs" / "results" / "my_finding.json")
    assert found.values == {"trim": {"loss": 0.2134}}
