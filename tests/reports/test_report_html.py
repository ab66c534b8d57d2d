"""The HTML report: whole, self-contained, accessible, and unmoved by what a payload wrote."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hostile import hostile_result, hostile_servers
from lxml import html as parser
from synthetic_result import synthetic_result
from synthetic_servers import START, servers_result

from bench import metrics
from bench.analysis import Analysis, analyse
from reports import footprints, html


@cache
def _servers() -> Analysis:
    return analyse(servers_result())


@pytest.fixture(scope="module")
def page() -> str:
    return html.render(analyse(synthetic_result()))


@pytest.fixture(scope="module", params=["synthetic", "hostile", "empty", "one driver", "servers", "hostile servers"])
def any_page(request: pytest.FixtureRequest) -> str:
    result = synthetic_result()
    results = {
        "synthetic": result,
        "hostile": hostile_result(),
        "empty": replace(result, trials=()),
        "servers": servers_result(),
        "hostile servers": hostile_servers(),
        "one driver": synthetic_result(without=("native", "container"), failed=()),
    }
    return html.render(analyse(results[request.param]))


@pytest.fixture(scope="module")
def servers() -> str:
    return html.render(_servers())


def _text(element) -> str:
    return " ".join(element.text_content().split())


def test_it_is_a_well_formed_document(any_page: str) -> None:
    from lxml import etree

    # every element but the void ones is closed, every attribute quoted: an XML parser agrees but for the doctype
    xml = re.sub(r"<!doctype html>", "", any_page)
    xml = re.sub(r"<(meta|br)\b([^>]*?)>", r"<\1\2/>", xml)
    root = etree.fromstring(xml.encode())
    assert root.tag == "html"
    assert root.get("lang") == "en"


def test_it_has_no_script_and_asks_nobody_for_anything(any_page: str) -> None:
    root = parser.fromstring(any_page)
    assert root.xpath("//script | //link | //img | //iframe | //object | //embed | //base | //form") == []
    assert root.xpath("//@src | //@srcset | //@action | //@formaction | //@data | //@poster | //@ping") == []
    assert [name for element in root.iter() for name in element.attrib if name.lower().startswith("on")] == []
    assert all(link.startswith("#") for link in root.xpath("//@href"))
    for style in [*root.xpath("//@style"), *(node.text for node in root.xpath("//style"))]:
        assert "@import" not in style
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", style))


def test_every_internal_link_leads_somewhere_and_every_id_is_unique(any_page: str) -> None:
    root = parser.fromstring(any_page)
    ids = root.xpath("//@id")
    assert len(ids) == len(set(ids))
    links = {link[1:] for link in root.xpath("//@href")}
    links |= set(re.findall(r"url\(#([^)]+)\)", any_page))
    links |= {name for names in root.xpath("//@aria-labelledby") for name in names.split()}
    assert links - set(ids) == set()


def test_nothing_unprintable_reaches_the_page(any_page: str) -> None:
    assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", any_page) is None
    any_page.encode()


def test_a_hostile_console_is_shown_and_not_obeyed() -> None:
    root = parser.fromstring(html.render(analyse(hostile_result())))
    tail = root.xpath("//section[@id='failures']//pre")[0].text_content()
    assert "<script>alert(1)</script>" in tail
    assert "{{ 7*7 }}" in tail


def test_the_first_screen_is_the_answer_then_the_table(page: str) -> None:
    root = parser.fromstring(page)
    assert _text(root.xpath("//p[@class='lead']")[0]).startswith("Against a bare process, the container ran at 9")
    assert [section.get("id") for section in root.xpath("//main/section")] == [
        "claims", "throughput", "start", "memory", "sizes", "conditions", "cautions", "failures", "samples",
        "definitions", "repeat",
    ]  # fmt: skip
    assert {_text(verdict)[2:] for verdict in root.xpath("//*[contains(@class, 'verdict')]")} == {
        "reproduced", "refuted", "undefined",
    }  # fmt: skip


def test_every_figure_of_the_emulated_driver_is_labelled(page: str) -> None:
    root = parser.fromstring(page)
    heads = [_text(head) for head in root.xpath("//thead//th") if "qemu" in head.text_content()]
    assert heads
    assert all("emulated" in head for head in heads)
    labels = root.xpath("//td[not(parent::*[@class='claim'])]/@data-label")
    labels = [label for label in labels if "qemu" in label or "Virtual server" in label or "VM" in label]
    assert labels
    assert all("emulated" in label for label in labels)
    lanes = [text for text in root.xpath("//svg//text/text()") if "qemu" in text]
    assert lanes
    assert all("emulated" in text for text in lanes)


def test_figures_on_hardware_are_not_called_emulated() -> None:
    root = parser.fromstring(html.render(analyse(synthetic_result(emulated=False))))
    assert root.xpath("//*[@class='emulated']") == []
    assert "(emulated)" not in _text(root.xpath("//header")[0])


def test_each_metric_is_one_click_from_its_definition(page: str) -> None:
    root = parser.fromstring(page)
    analysis = analyse(synthetic_result())
    for row in analysis.rows:
        links = root.xpath("//table[not(contains(@class, 'claims'))]//tbody//th/a")
        title = next(link for link in links if link.text_content().endswith(row.metric.title))
        definition = root.get_element_by_id(title.get("href")[1:]).getnext()
        assert _text(definition) == " ".join(row.metric.definition.split())


def test_each_line_of_the_reconciled_memory_is_one_click_from_its_definition(servers: str) -> None:
    root = parser.fromstring(servers)
    lines = [line for group in footprints.groups(_servers()) for line in group.lines if line.anchor]
    assert len(lines) > 10
    for line in lines:
        link = root.xpath(f"//section[@id='memory']//th/a[@href='#{line.anchor}']")[0]
        assert _text(link) == line.name
        assert _text(root.get_element_by_id(line.anchor).getnext()) == " ".join(line.definition.split())


def test_a_section_without_data_is_left_out_of_page_and_navigation() -> None:
    page = parser.fromstring(html.render(analyse(replace(synthetic_result(), trials=()))))
    sections = page.xpath("//main/section/@id")
    assert {"start", "lifecycle", "memory", "samples"} & set(sections) == set()
    assert [link[1:] for link in page.xpath("//nav//a/@href")] == sections
    assert page.xpath("//table[not(.//tbody/tr)]") == []


def test_everything_that_a_study_measured_has_its_place(servers: str) -> None:
    root = parser.fromstring(servers)
    assert [section.get("id") for section in root.xpath("//main/section")] == [
        "claims", "throughput", "start", "lifecycle", "memory", "sizes", "conditions", "cautions", "failures",
        "samples", "definitions", "repeat",
    ]  # fmt: skip
    life = [_text(head) for head in root.xpath("//section[@id='lifecycle']//tbody//th")]
    assert life[0] == "lifecycle: Start to ready"
    assert {"Suspend", "Restore", "Snapshot of the disk", "Destroy"} <= set(life)
    sizes = [_text(head) for head in root.xpath("//section[@id='sizes']//tbody//th")]
    assert sizes == [metric.title for metric in metrics.IMAGE]
    memory = {_text(head) for head in root.xpath("//section[@id='memory']//tbody//th")}
    assert {
        "Granted",
        "Residue",
        "Minimum memory",
        "Balloon: granted now",
        "Host memory, idle (as libvirt says)",
    } <= memory


def test_every_attempt_at_the_minimum_is_listed(servers: str) -> None:
    analysis = _servers()
    rows = parser.fromstring(servers).xpath("//section[@id='memory']//details//tbody/tr")
    assert len(rows) == len(analysis.searches) == 24
    for row, search in zip(rows, analysis.searches, strict=True):
        tries = _text(row.xpath("./td")[3])
        assert tries.count("✓") == sum(attempt.completed for attempt in search.attempts)
        assert tries.count("✗") == sum(not attempt.completed for attempt in search.attempts)


def test_a_waterfall_has_every_step_of_its_driver_in_the_order_of_their_beginnings(servers: str) -> None:
    tables = parser.fromstring(servers).xpath("//table[@class='way']")
    assert [_text(table.xpath("./caption/strong")[0]).split()[0] for table in tables] == list(START)
    full = [_text(head) for head in tables[3].xpath(".//tbody//th")]
    assert [name.split(" (")[0] for name in full] == [
        "spawned: it is asked for", "make its disk", "create the domain", "hypervisor sets up the machine",
        "let it run", "loader", "kernel: its first line", "init", "sysinit.target", "basic.target", "network.target",
        "multi-user.target", "ready", "first answer",
    ]  # fmt: skip
    assert "after ready there" in full[-1]


def test_the_bars_of_a_waterfall_stand_one_after_the_other_and_fill_the_start(servers: str) -> None:
    for table in parser.fromstring(servers).xpath("//table[@class='way']"):
        bars = [
            tuple(map(float, re.findall(r"[\d.]+(?=%)", style)))
            for style in table.xpath(".//span[@class='track']/span/@style")
        ]
        assert bars[0][0] == 0
        assert sum(width for _, width in bars) == pytest.approx(100, abs=0.2)
        for (left, width), (following, _) in pairwise(bars):
            assert following == pytest.approx(left + width, abs=0.03)


def test_short_steps_share_a_line_and_one_click_shows_them(servers: str) -> None:
    container = parser.fromstring(servers).xpath("//table[@class='way']")[1]
    folded = container.xpath(".//tbody//details")
    assert [_text(summary) for summary in container.xpath(".//summary")] == ["16 short steps", "5 short steps"]
    assert [len(each.xpath(".//li")) for each in folded] == [16, 5]
    assert "mount its root (overlay of" in _text(folded[0])


def test_a_step_that_some_trials_lack_says_how_many_have_it() -> None:
    result = servers_result()
    odd = tuple(
        replace(trial, steps=tuple(step for step in trial.steps if trial.block == 0 or step.name != "loader"))
        for trial in result.trials
    )
    root = parser.fromstring(html.render(analyse(replace(result, trials=odd))))
    row = next(row for row in root.xpath("//table[@class='way'][4]//tr") if "loader" in row.text_content())
    assert "(1 of 3 trials)" in _text(row)
    assert [_text(cell) for cell in row.xpath("./td")][1:] == ["—", "—"]


def test_a_missing_base_is_said_once_and_not_beside_every_figure(servers: str) -> None:
    rows = parser.fromstring(servers).xpath("//section[@id='lifecycle']//tbody/tr")
    suspend = next(row for row in rows if "Suspend" in row.text_content())
    native, container, *_ = suspend.xpath("./td")
    assert _text(native).startswith("—")
    assert container.xpath(".//*[@class='relative']") == []


def test_a_missing_figure_is_a_dash_with_a_reason_and_no_zero(page: str) -> None:
    root = parser.fromstring(page)
    row = next(row for row in root.xpath("//section[@id='memory']//tr") if "cgroup" in row.text_content())
    native = row.xpath("./td")[0]
    assert _text(native).startswith("—")
    note = root.get_element_by_id(native.xpath(".//sup/a/@href")[0][1:])
    assert _text(note) == "Its trials did not record this metric."


def test_every_table_has_a_caption_or_a_label_and_scoped_headings(page: str) -> None:
    root = parser.fromstring(page)
    for table in root.xpath("//table"):
        assert table.xpath("./caption") or table.xpath("./ancestor::*[@aria-label]")
        assert all(head.get("scope") for head in table.xpath(".//th"))


def test_headings_descend_without_gaps(page: str) -> None:
    levels = [int(head.tag[1]) for head in parser.fromstring(page).xpath("//h1 | //h2 | //h3 | //h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_picture_has_a_title_and_says_its_figures_in_words(page: str) -> None:
    pictures = parser.fromstring(page).xpath("//svg")
    assert len(pictures) == 6
    for picture in pictures:
        assert picture.get("role") == "img"
        assert picture.xpath("./title/text()")
        assert "container" in picture.xpath("./desc/text()")[0]


def test_pictures_follow_the_theme(page: str) -> None:
    for style in parser.fromstring(page).xpath("//svg//@style"):
        for colour in re.findall(r"(?:fill|stroke): ([^;]+)", style):
            assert colour == "none" or colour.startswith("var(--"), style


def test_every_sample_is_listed(page: str) -> None:
    rows = parser.fromstring(page).xpath("//section[@id='samples']//tbody/tr")
    lines = {(row.trial, row.metric) for row in analyse(synthetic_result()).samples}
    assert len(rows) == len(lines)


def test_the_command_to_repeat_it_names_seed_and_drivers(page: str) -> None:
    command = parser.fromstring(page).xpath("//section[@id='repeat']/pre")[0].text_content()
    assert command == (
        "isomark run quick --drivers native,container,qemu --workloads boot,cpu,memory,disk,http --trials 5 --seed 20"
    )


def test_a_suite_name_cannot_smuggle_a_second_command() -> None:
    result = synthetic_result()
    evil = replace(result, header=replace(result.header, suite_name="quick; rm -rf ~"))
    assert analyse(evil).repeat_command.startswith("isomark run 'quick; rm -rf ~' ")
