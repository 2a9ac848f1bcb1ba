"""Opens the report of tools/perf in headless Chromium: no error on its console, nothing loaded, every plot drawn.

The figures are made up. The same checks are run on pages that are broken on purpose, which must fail them.
"""

import argparse
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools" / "lib"))

import browser
import comparison
import perf_command

SKIPPED = 77  # as meson takes it

CONTENDERS = tuple(comparison.CONTENDERS)
JOBS = {"randread qd1": "fio", "with <b>markup</b> & \"quotes\"": "fio", "tcp to host": "iperf", "ping": "ping"}
TURNS = 3

# Of each plot: the size of its drawing, those of its bars, how many bars are drawn within it, and its texts.
PLOTS = """
[...document.querySelectorAll("figure svg")].map(svg => {
  const outer = svg.getBoundingClientRect();
  const inside = box => box.left >= outer.left - 1 && box.right <= outer.right + 1 && box.top >= outer.top - 1 && box.bottom <= outer.bottom + 1;
  const visible = mark => getComputedStyle(mark).fill !== "none" && getComputedStyle(mark).visibility === "visible";
  const bars = [...svg.querySelectorAll("rect")];
  return {
    width: outer.width, height: outer.height, drawing: svg.getBBox().width,
    bars: bars.filter(bar => bar.getBoundingClientRect().width > 0 && bar.getBoundingClientRect().height > 0 &&
                             inside(bar.getBoundingClientRect()) && visible(bar)).length,
    spreads: svg.querySelectorAll("line.spread").length,
    cut: [...svg.querySelectorAll("text")].filter(text => !inside(text.getBoundingClientRect())).map(text => text.textContent),
    numbers: [...svg.querySelectorAll("text")].map(text => text.textContent).filter(text => /^[0-9]/.test(text)).length,
  };
})
"""


def made_up_rows():
    rows = []
    for turn in range(TURNS):
        for job, kind in JOBS.items():
            for number, contender in enumerate(CONTENDERS):
                counted = {"exits": 3000, "guest_s": 1.5, "host_s": 0.5, "clock_s": 2.0}
                rows.append({"contender": contender, "job": job, "kind": kind, "counted": counted, "value": 1e5 / (1 + number) + 1000 * turn})
    return rows


def report():
    return perf_command.report(perf_command.medians(made_up_rows()), "emulated", argparse.Namespace(rounds=TURNS, seconds=2))


def faults_of(page, path):
    """What is wrong with the report at `path`, as texts."""
    page.open(path.as_uri())
    faults = []
    for event in page.events:
        method, what = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            faults.append(f"exception: {what['exceptionDetails']['text']}")
        elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            faults.append(f"console: {what['args']}")
        elif method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            faults.append(f"log: {what['entry']['text']}")
        elif method == "Network.requestWillBeSent" and what["request"]["url"] != path.as_uri():
            faults.append(f"loads {what['request']['url']}")
    plots = page.evaluate(PLOTS)
    if len(plots) != len(JOBS):
        faults.append(f"{len(plots)} plots, not {len(JOBS)}")
    for job, plot in zip(JOBS, plots):
        if min(plot["width"], plot["height"], plot["drawing"]) <= 0:
            faults.append(f"{job}: no area")
        faults += [f"{job}: {plot[mark]} {mark}, not {len(CONTENDERS)}" for mark in ("bars", "spreads", "numbers") if plot[mark] != len(CONTENDERS)]
        faults += [f"{job}: cut off: {text}" for text in plot["cut"]]
    headings = page.evaluate("[...document.querySelectorAll('figcaption')].map(caption => caption.firstChild.textContent.trim())")
    if headings != list(JOBS):
        faults.append(f"headings {headings}")
    return faults


# What a report could get wrong, as an edit of a good one; each must be found.
BROKEN = {
    "a bar without width": lambda text: text.replace("<rect ", '<rect style="width: 0" ', 1),
    "a bar beside the plot": lambda text: text.replace("<rect ", '<rect transform="translate(2000)" ', 1),
    "a plot too few": lambda text: text.replace("<svg ", "<div ", 1),
    "hidden plots": lambda text: text.replace("svg {", "svg { display: none !important;"),
    "a script that fails": lambda text: text + "<script>nowhere.to_be_found()</script>",
    "a message on the console": lambda text: text + "<script>console.error('sorry')</script>",
    "a picture from elsewhere": lambda text: text + '<img src="elsewhere.png">',
}


def main():
    if browser.program() is None:
        print("there is no Chromium")
        return SKIPPED
    failed = False
    good = report()
    with tempfile.TemporaryDirectory(prefix="vmbusd-report-") as folder, browser.Browser() as page:
        path = pathlib.Path(folder) / "report.html"
        path.write_text(good, encoding="utf-8")
        for fault in faults_of(page, path):
            print(f"the report: {fault}")
            failed = True
        for what, edit in BROKEN.items():
            broken = edit(good)
            path.write_text(broken, encoding="utf-8")
            if broken == good or not faults_of(page, path):
                print(f"not found: {what}")
                failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
