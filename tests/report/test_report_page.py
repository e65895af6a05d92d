"""The page of a run, in a browser: what is shown where, by mouse, keyboard and link, in both themes and on a phone."""

import base64
import json
import math
import random
import re
import shutil
import time
import zlib

import numpy as np
import pytest

from rcsd_jax.report import page

ROLES = ("base", "trained", "teacher")
KINDS = ("Essential", "Important", "Optional", "Pitfall")
STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # nats from which each colour step begins
HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\"> <!-- <script> ${1} {{ 7 * 7 }} &lt;b&gt; \x00 \ud83d end"
)
WORDS = (
    " the law of momentum is mass times speed ; convert t to kg = 4 000 , so 12 * 9 and check units before the answer ;"
    " energy flows from hot to cold bodies until both agree \n because work needs a force µ along its path"
).split(" ")[1:]


def criterion(i, rng):
    verbs = (
        "states the law",
        "converts the mass to kg",
        "ignores the age",
        "gives the unit",
        "boxes the answer",
        "checks units",
    )
    kind = KINDS[i % 4]
    weight = {"Essential": 10, "Important": 7, "Optional": 3, "Pitfall": -9}[kind]
    title = rng.choice(["", "Unit of the result", "Law"])
    return {"title": title, "description": f"{verbs[i % 6]} in part {i + 1}", "weight": weight, "kind": kind}


def scored(rng, count, criteria, *, mean=0.05, clipped=False):
    """Pieces and scores of a completion of `count` tokens: most of them agreed upon, a few not."""
    tokens = [rng.choice(WORDS) for _ in range(count)]
    tokens = [t if "\n" in t or i == 0 else " " + t for i, t in enumerate(tokens)]

    def top(token, sure):
        rest, left = [], 1.0 - sure
        for other in rng.sample(WORDS, 5):
            share = left * rng.uniform(0.4, 0.8)
            left -= share
            rest.append([" " + other, round(share, 4)])
        return sorted([[token, sure], *[r for r in rest if r[0] != token][:4]], key=lambda entry: -entry[1])

    sure = [min(0.999, rng.betavariate(4, 0.6)) for _ in tokens]
    divergence = [rng.expovariate(1 / mean) ** 1.6 * 4 for _ in tokens]
    if clipped:
        divergence = [d - 0.4 if rng.random() < 0.2 else d for d in divergence]
    attribution = [[rng.gauss(0, 0.02) for _ in tokens] for _ in range(criteria)]
    for row in attribution:
        for _ in range(max(1, count // 25)):
            row[rng.randrange(count)] = rng.choice((1, 1, -1)) * rng.uniform(0.05, 3.5)
    student_sure = [max(1e-5, p * math.exp(-d)) for p, d in zip(sure, divergence, strict=True)]
    return {
        "tokens": tokens,
        "text": "".join(tokens),
        "divergence": divergence,
        "student_log_prob": [math.log(p) for p in student_sure],
        "teacher_log_prob": [math.log(p) for p in sure],
        "weight": [1.0 if i % 2 else 0.25 for i in range(count)],
        "student_top": [top(t, p) for t, p in zip(tokens, student_sure, strict=True)],
        "teacher_top": [top(t, p) for t, p in zip(tokens, sure, strict=True)],
        "attribution": attribution,
    }


def add_target(completion, rng):
    """A target that differs from the teacher at every third token."""
    moved = [0.4 * (i % 3 == 1) * (1 + rng.random()) for i in range(len(completion["tokens"]))]
    completion["target_divergence"] = moved
    completion["target_log_prob"] = [x - 2 * m for x, m in zip(completion["teacher_log_prob"], moved, strict=True)]
    completion["target_top"] = [
        [[" target", 0.5], *top[:4]] if m else top for top, m in zip(completion["teacher_top"], moved, strict=True)
    ]


def evaluation(rng, score, levels):
    def scores(level, questions, samples):
        mean = min(max(level + rng.uniform(-0.02, 0.02), 0), 1)
        stderr = (mean * (1 - mean) / questions) ** 0.5
        found = {
            "questions": questions,
            score: mean,
            f"{score}_stderr": stderr,
            "parsed": 0.98,
            "length": 31.5,
            "share_cut": 0.0,
        }
        found[f"{score}_interval"] = [max(0, mean - 1.96 * stderr), min(1, mean + 1.96 * stderr)]
        return found | ({"samples": samples, "pass@4": min(1, mean + 0.1)} if samples > 1 else {})

    return {
        role: {
            split: {"sampled": scores(level - 0.12 * i, 256, 4), "greedy": scores(level - 0.1 * i + 0.05, 256, 1)}
            for i, split in enumerate(("in_distribution", "out_of_distribution"))
        }
        for role, level in levels.items()
    }


def metrics(rng, steps):
    decay = [math.exp(-3 * t / steps) for t in range(steps)]
    return {
        "step": list(range(steps)),
        "loss": [0.07 * d * rng.uniform(0.6, 1.5) + 0.008 for d in decay],
        "student_entropy": [0.05 * d + 0.04 + rng.gauss(0, 0.004) for d in decay],
        "teacher_entropy": [0.03 * d + 0.02 + rng.gauss(0, 0.003) for d in decay],
        "completion_length": [34 - 9 * d + rng.gauss(0, 0.8) for d in decay],
        "share_cut": [max(0.0, 0.05 * d + rng.gauss(0, 0.004)) for d in decay],
        "grad_norm": [0.5 * d + 0.05 if t % 9 else None for t, d in enumerate(decay)],
        "tokens_per_second": [1e5 * rng.uniform(0.8, 1.2) for _ in decay],
    }


def a_stage(seed=0, *, examples=12, tokens=60, criteria=5, name="stage2", clipped=False):
    rng = random.Random(seed)
    described = []
    for i in range(examples):
        right = {"base": i % 3 == 1, "trained": i % 4 != 3, "teacher": True}
        rubric = [criterion(k, rng) for k in range(criteria)]
        described.append(
            {
                "id": f"eval-{seed}-{i}",
                "split": "in_distribution" if i < examples - examples // 3 else "out_of_distribution",
                "question": f"A cart of {i + 2} t and age {i + 1} years moves at 9 m / s . What is its momentum ?",
                "reference": "law momentum = mass * speed ; answer \\boxed{ 36 000 kgm/s }",
                "rubric": rubric,
                "completions": [
                    {"role": role, "cut": i == 1,
                     "scores": {"accuracy": float(right[role]), "rubric_score": rng.random()},
                     **scored(rng, tokens + 7 * k, criteria, mean=0.2 if role == "base" else 0.05, clipped=clipped)}
                    for k, role in enumerate(ROLES)
                ],
            }
        )  # fmt: skip
    levels = {"base": 0.4, "step_20": 0.62, "step_40": 0.86, "step_60": 0.84, "trained": 0.82, "teacher": 0.93}
    return {
        "name": name,
        "task": "solve",
        "config": {"optimizer.learning_rate": 5e-6, "teacher.fields": ["rubric"], "seed": 0, "data.path": "a<b>&c"},
        "config_changed": ["optimizer.learning_rate", "data.path"],
        "evaluation": evaluation(rng, "accuracy", levels),
        "metrics": metrics(rng, 80),
        "lengths": {role: [max(4, int(rng.gauss(26 + 4 * k, 6))) for _ in range(256)] for k, role in enumerate(ROLES)},
        "examples": described,
        "rubrics": [],
    }  # fmt: skip


def a_writing_stage(seed=1):
    rng = random.Random(seed)
    rubrics = []
    for i in range(9):
        truth = [criterion(k, rng) for k in range(5)]
        written = [dict(c) for c in rng.sample(truth, 4)]
        written[0]["description"] = written[0]["description"].upper() + "."  # the same when normalised
        written[1]["description"] += " as asked"
        written.append({"title": "", "description": "mentions the weather", "weight": 3, "kind": "Optional"})
        status = ("strict", "strict", "salvaged", "rejected")[i % 4]
        question = f"What does a body of {i} kg weigh , and why ?"
        rubric = {"id": f"r-{i}", "question": question, "truth": truth, "written": written, "status": status}
        rubrics.append(rubric | ({"written": None, "text": "[ not quite JSON"} if status == "rejected" else {}))
    stage = a_stage(seed, examples=3, tokens=30, name="stage1") | {"task": "write_rubric", "rubrics": rubrics}
    stage["evaluation"] = evaluation(rng, "criterion_f1", {"base": 0.41, "trained": 0.95})
    for example in stage["examples"]:
        for completion in example["completions"]:
            completion["scores"] = {"valid": 1.0, "criterion_f1": round(rng.random(), 2)}
    return stage


def a_run(*stages):
    return {
        "title": "tiny",
        "commands": [
            "python -m rcsd_jax.main --config=configs/tiny.py",
            "python -m rcsd_jax.main --config=tiny '--workdir=a b'",
        ],
        "made": "2026-03-04 12:30",
        "versions": {"rcsd_jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.1"},
        "stages": list(stages),
    }


# ------------------------------------------------------------------------------------------------ the browser


@pytest.fixture(scope="module")
def chrome():
    """One headless Chromium for the file's tests."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    from selenium import webdriver

    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and its driver are not there (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1440,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


@pytest.fixture
def opened(chrome, tmp_path):
    """Opens a page, and when the test is over sees that it asked for nothing and complained of nothing."""

    def open_page(data, fragment="", *, dark=False, width=1440, height=900):
        path = tmp_path / "report.html"
        path.write_text(data if isinstance(data, str) else page.render(data), encoding="utf-8")
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        chrome.get("about:blank")
        for log in ("browser", "performance"):
            chrome.get_log(log)
        chrome.get(path.as_uri() + fragment)
        wait_for(chrome, "performance.getEntriesByName('ready').length && !document.querySelector('.view:empty')")
        return chrome

    yield open_page
    assert [entry["message"] for entry in chrome.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url.split("#")[0] for url in asked if not url.startswith("data:")} <= {(tmp_path / "report.html").as_uri()}
    assert not [e for e in events if e["method"] == "Network.loadingFailed"]
    chrome.execute_script("try { localStorage.clear() } catch {}")


def wait_for(chrome, condition, seconds=20):
    end = time.monotonic() + seconds
    while not chrome.execute_script(f"return Boolean({condition})"):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def all_of(chrome, selector):
    return chrome.find_elements("css selector", selector)


def one(chrome, selector):
    (found,) = all_of(chrome, selector)
    return found


def press(chrome, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(chrome, duration=0).send_keys(*keys).perform()


def shown_example(chrome):
    return chrome.execute_script("return document.querySelector('.stage:not(.away) .title h3').textContent")


def tops(chrome):
    """Role -> [(piece, percent as shown)] of the open tooltip."""
    return chrome.execute_script("""
        return Object.fromEntries(["student", "teacher"].map((role) => [role,
            [...document.querySelectorAll(`#tooltip .${role} .row`)].map((row) =>
                [row.querySelector(".piece").textContent, row.querySelector(".p").textContent])]))""")


def as_shown(rows):
    """What the tooltip makes of [[piece, probability]]."""
    found = []
    for piece, exact in rows:
        p = round(exact, 4)
        percent = (
            "> 99.9"
            if 0.9995 < p < 1
            else f"{100 * p:.1f}"
            if p >= 0.0995
            else f"{100 * p:.2f}"
            if p >= 0.0001
            else "< 0.01"
        )
        found.append([re.sub(r"^ | $", "␣", piece).replace("\n", "↵"), percent])
    return found


def text_tokens(chrome, role):
    return all_of(chrome, f".stage:not(.away) .card.of-{role} .t")


def tones(chrome, role):
    """The colour class of every token."""
    return chrome.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((t) => t.className.split(' ')[1])",
        f".stage:not(.away) .card.of-{role} .t",
    )


# ------------------------------------------------------------------------------------------------ results and charts


def test_headline_says_means_intervals_gains_and_the_best(opened):
    stage = a_stage()
    scores = {
        role: {"questions": 200, "accuracy": mean, "accuracy_stderr": 0.01, "accuracy_interval": interval}
        for role, mean, interval in (
            ("base", 0.4, [0.35, 0.45]), ("step_20", 0.9, [0.88, 0.93]), ("step_40", 0.5, None),
            ("trained", 0.375, [0.3, 0.4]), ("teacher", 0.95, [0.9, 1.0]),
        )
    }  # fmt: skip
    stage["evaluation"] = {role: {"held_out": {"greedy": of_role}} for role, of_role in scores.items()}
    chrome = opened(a_run(stage))
    rows = [row.text.splitlines() for row in all_of(chrome, ".headline tbody tr")]
    assert rows == [
        ["base student 40.0", "35.0 – 45.0"],
        ["after 20 steps 90.0 +50.0", "88.0 – 93.0"],
        ["trained student 37.5 −2.5", "30.0 – 40.0"],
        ["teacher (rubric) 95.0", "90.0 – 100.0"],
    ]
    assert [cell.text.split()[0] for cell in all_of(chrome, ".headline td.best")] == ["90.0"]
    assert (
        "held out" in one(chrome, ".headline thead th").text
        and "200 questions" in one(chrome, ".headline thead th").text
    )
    numbers = chrome.execute_script(
        "return [...document.querySelectorAll('.numbers tbody tr')].map((r) => r.textContent)"
    )
    assert len(numbers) == 5 and "50.0 ± 1.0" in numbers[2]


def test_curves_and_histograms(opened):
    chrome = opened(a_run(a_stage()))
    captions = [c.text for c in all_of(chrome, ".charts figcaption")]
    assert captions == [
        "Accuracy, %, in distribution, sampled", "Accuracy, %, out of distribution, sampled", "Loss", "Entropy, nats",
        "Completion length, tokens", "Share of completions cut, %", "Length of evaluation completions, tokens",
    ]  # fmt: skip
    accuracy, entropy = all_of(chrome, ".charts .chart")[0], all_of(chrome, ".charts .chart")[3]
    assert len(accuracy.find_elements("css selector", ".dot")) == 5  # base, three steps, trained
    assert [rule.get_attribute("class") for rule in accuracy.find_elements("css selector", ".rule")] == [
        "rule of-base",
        "rule of-teacher",
    ]
    assert [name.text for name in entropy.find_elements("css selector", ".name")] == ["student", "teacher"]
    chrome.execute_script("document.querySelector('.charts + details').open = true")
    wait_for(chrome, "document.querySelectorAll('.charts + details .chart').length === 2")  # gradient norm and speed
    assert "NaN" not in chrome.page_source.split("<script")[0]


# ------------------------------------------------------------------------------------------------ tokens


@pytest.mark.parametrize("place", [0, 17])
def test_hover_and_focus_show_the_likeliest_of_both_roles(opened, place):
    from selenium.webdriver import ActionChains, Keys

    stage = a_stage()
    completion = stage["examples"][0]["completions"][1]
    chrome = opened(a_run(stage))
    token = text_tokens(chrome, "trained")[place]
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", token)
    ActionChains(chrome, duration=0).move_to_element(token).perform()
    tooltip = one(chrome, "#tooltip")
    assert tooltip.is_displayed() and tooltip.get_attribute("role") == "tooltip"
    assert token.get_attribute("aria-describedby") == "tooltip"
    expected = {role: as_shown(completion[f"{role}_top"][place]) for role in ("student", "teacher")}
    for role in expected:  # a written token that is not among the likeliest stands below them
        assert tops(chrome)[role][: len(expected[role])] == expected[role]
        assert any(row[0] == as_shown([[completion["tokens"][place], 0]])[0][0] for row in tops(chrome)[role])
    by_mouse = tooltip.text
    for name, value in (
        ("divergence", completion["divergence"]),
        ("student log p", completion["student_log_prob"]),
        ("teacher log p", completion["teacher_log_prob"]),
    ):
        assert f"{name} {value[place]:.3f}".replace("-", "−") in by_mouse
    assert ("counts 0.250 times" in by_mouse) == (place % 2 == 0)
    ActionChains(chrome, duration=0).move_to_element(one(chrome, "h1")).perform()
    assert not tooltip.is_displayed()

    chrome.execute_script("document.querySelector('.card.of-trained .t[tabindex]').focus()")
    press(chrome, *[Keys.ARROW_RIGHT] * place)
    assert tooltip.is_displayed() and tooltip.text == by_mouse
    assert chrome.switch_to.active_element == token
    box = tooltip.rect
    view = chrome.execute_script("return [scrollX, scrollY, innerWidth, innerHeight]")
    assert view[0] <= box["x"] and box["x"] + box["width"] <= view[0] + view[2]
    assert view[1] <= box["y"] and box["y"] + box["height"] <= view[1] + view[3]
    press(chrome, Keys.ESCAPE)
    assert not tooltip.is_displayed()


def test_lines_and_tokens_of_note_by_keyboard(opened):
    from selenium.webdriver import Keys

    stage = a_stage(tokens=200, examples=1)
    chrome = opened(a_run(stage))
    at = "return document.activeElement.place"
    chrome.execute_script("document.querySelector('.card.of-base .t[tabindex]').focus()")
    press(chrome, Keys.ARROW_DOWN)
    down = chrome.execute_script(at)
    left = chrome.execute_script(
        "return [...document.querySelectorAll('.card.of-base .t')].slice(0, 40).map((t) => t.getClientRects()[0].top)"
    )
    assert left[down] > left[0] and left[down - 1] in (left[0], left[down])
    press(chrome, Keys.ARROW_UP)
    assert left[chrome.execute_script(at)] == left[0]
    press(chrome, Keys.HOME)
    strong = [i for i, d in enumerate(stage["examples"][0]["completions"][0]["divergence"]) if round(d, 3) >= 1 and i]
    press(chrome, "n")
    assert chrome.execute_script(at) == strong[0]
    press(chrome, Keys.END)
    assert chrome.execute_script(at) == 199


def test_a_colour_step_for_each_token_and_readable_ones(opened):
    stage = a_stage(clipped=True)
    completion = stage["examples"][0]["completions"][0]
    steps = [
        ("n" if x < 0 else "d") + str(sum(abs(x) >= s for s in STEPS))
        for x in (round(d, 3) for d in completion["divergence"])
    ]
    assert {s[0] for s in steps} == {"n", "d"}
    for dark in (False, True):
        chrome = opened(a_run(stage), dark=dark)
        assert tones(chrome, "base") == [
            "d0" if s == "n0" and round(d, 3) == 0 else s for s, d in zip(steps, completion["divergence"], strict=True)
        ]
        found = chrome.execute_script("""
            const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
            const luminance = (...colours) => {
                for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
                const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => c / 255)
                    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const card = document.querySelector(".card"), text = card.querySelector(".text");
            const probe = text.appendChild(document.createElement("span"));
            const under = getComputedStyle(card).backgroundColor, ink = luminance(getComputedStyle(text).color);
            return [ink, luminance(under), ["d", "n", "a", "b"].map((way) => [1, 2, 3, 4, 5, 6].map((step) => {
                probe.className = `t ${way}${step}`;
                return luminance(under, getComputedStyle(probe).backgroundColor);
            }))];""")
        ink, under, scales = found
        assert (ink > 0.5) == dark
        for scale in scales:
            differences = [abs(b - a) for a, b in zip([under, *scale], scale, strict=False)]
            assert all(d > 0.003 for d in differences) and scale in (sorted(scale), sorted(scale, reverse=True))
            contrast = [(max(ink, x) + 0.05) / (min(ink, x) + 0.05) for x in scale]
            assert min(contrast) >= 4.5, (dark, contrast)


def tone_of_weight(weight):
    """The colour class of a weight: factors from which its steps begin, above 1 and below it."""
    factor = math.inf if weight == 0 else max(weight, 1 / weight)
    step = sum(factor >= x for x in (1.05, 1.1, 1.25, 1.5, 2, 4))
    return f"{'n' if weight < 1 and step else 'd'}{step}"


def test_a_switch_colours_tokens_by_weight_and_by_what_the_target_changes(opened):
    from selenium.webdriver import Keys

    stage, rng = a_stage(examples=2, tokens=12), random.Random(0)
    weights = [0.0, 0.2, 0.5, 0.7, 0.95, 0.97, 1.0, 1.04, 1.06, 1.3, 2.0, 9.0]
    for completion in (c for e in stage["examples"] for c in e["completions"]):
        add_target(completion, rng)
    shown = stage["examples"][0]["completions"][0]
    shown["weight"] = weights
    chrome = opened(a_run(a_writing_stage(), stage), "#stage2/eval-0-0")
    by_divergence = tones(chrome, "base")
    radios = all_of(chrome, ".stage:not(.away) .views input")
    assert [radio.get_attribute("value") for radio in radios] == ["divergence", "weight", "target"]
    legend = lambda: one(chrome, ".stage:not(.away) .legend").text
    assert "divergence from the target, nats" in legend()
    chrome.execute_script("arguments[0].focus()", radios[0])
    press(chrome, Keys.ARROW_RIGHT)
    assert tones(chrome, "base") == [tone_of_weight(weight) for weight in weights]
    chosen = "return [...document.querySelectorAll('.views input:checked')].map((radio) => radio.value)"
    assert chrome.execute_script(chosen) == ["divergence", "weight"]  # each stage has a switch of its own
    assert "how many times a token counts" in legend() and "0.25" in legend() and "1.05" in legend()
    strip = one(chrome, ".stage:not(.away) .card.of-base > .strip")
    assert strip.get_attribute("aria-label") == "weight along the completion"
    cells = [path.get_attribute("class") for path in strip.find_elements("css selector", "path")]
    assert sorted(cells) == sorted({tone_of_weight(weight) for weight in weights} - {"d0"})
    press(chrome, Keys.ARROW_RIGHT)
    steps = [sum(round(x, 3) >= s for s in STEPS) for x in shown["target_divergence"]]
    assert tones(chrome, "base") == [f"d{step}" for step in steps] and len(set(steps)) > 1
    assert "divergence of the target from the teacher, nats" in legend()
    assert shown_example(chrome) == "eval-0-0"  # arrow keys chose a view, and no other example
    press(chrome, "j")  # the next example is shown in the same way, and the switch keeps the focus
    wait_for(chrome, "document.querySelector('.stage:not(.away) .title h3').textContent === 'eval-0-1'")
    assert chrome.switch_to.active_element.get_attribute("value") == "target"
    press(chrome, "k")
    wait_for(chrome, "document.querySelector('.stage:not(.away) .title h3').textContent === 'eval-0-0'")
    assert tones(chrome, "base") == [f"d{step}" for step in steps]
    press(chrome, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert tones(chrome, "base") == by_divergence


def test_the_tooltip_shows_teacher_and_target_apart(opened):
    stage, rng = a_stage(examples=1, tokens=12), random.Random(0)
    completion = stage["examples"][0]["completions"][0]
    add_target(completion, rng)
    for width in (1440, 360):
        chrome = opened(a_run(stage), width=width, height=740)
        chrome.execute_script("document.querySelector('.card.of-base .t').focus()")
        press(chrome, "\ue014")  # right
        columns = all_of(chrome, "#tooltip .top")
        assert [c.find_element("css selector", "p").text.split()[0] for c in columns] == [
            "student",
            "teacher",
            "target",
        ]
        said = [[row.text.split()[0] for row in c.find_elements("css selector", ".row")] for c in columns]
        assert said[2][0] == "␣target" and "␣target" not in said[0] + said[1]
        text = one(chrome, "#tooltip").text.replace("\n", " ")
        assert f"target {completion['target_divergence'][1]:.3f} nats from the teacher" in text
        assert f"log p {completion['target_log_prob'][1]:.3f}".replace("-", "−") in text
        box = one(chrome, "#tooltip").rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_a_switch_is_there_only_if_it_shows_something(opened):
    stage = a_stage(examples=2, tokens=12)
    for completion in (c for e in stage["examples"] for c in e["completions"]):
        completion["weight"] = [1.0] * len(completion["tokens"])
    chrome = opened(a_run(stage))
    assert all_of(chrome, ".views") == [] and "divergence from the teacher, nats" in one(chrome, ".legend").text
    stage["config"]["method"] = "fixed_advantage"  # which has no teacher
    stage["examples"][1]["completions"][2]["weight"][3] = 0.0
    chrome = opened(a_run(stage))
    assert [radio.get_attribute("value") for radio in all_of(chrome, ".views input")] == ["divergence", "weight"]
    assert "divergence from the start, nats" in one(chrome, ".legend").text
    chrome.execute_script("document.querySelector('.card.of-base .t').focus()")
    assert "start log p" in one(chrome, "#tooltip").text and "teacher" not in one(chrome, "#tooltip").text


def test_a_criterion_lights_the_tokens_of_which_it_says_something(opened):
    from selenium.webdriver import Keys

    stage = a_stage()
    example = stage["examples"][0]
    weak = example["completions"][0]["attribution"][4] = [0.0] * 60  # below a tenth of a nat nothing is of note
    weak[3], weak[5], weak[7] = 0.12, -0.1, 0.099
    chrome = opened(a_run(stage))
    notable = lambda row: [
        i for i, x in enumerate(row) if abs(round(x, 3)) >= max(0.1, 0.25 * max(abs(round(y, 3)) for y in row))
    ]
    lit = lambda: chrome.execute_script(
        """return [...document.querySelectorAll('.card')].map((card) =>
            [...card.querySelectorAll('.t')].flatMap((t, i) => t.matches('.notable') ? [i] : []))"""
    )
    buttons = all_of(chrome, "button.criterion")
    assert len(buttons) == len(example["rubric"])
    buttons[2].click()
    assert lit() == [notable(c["attribution"][2]) for c in example["completions"]]
    assert [b.get_attribute("aria-pressed") for b in buttons] == ["false", "false", "true", "false", "false"]
    first = notable(example["completions"][0]["attribution"][2])[0]
    way = "b" if example["completions"][0]["attribution"][2][first] < 0 else "a"
    assert re.search(rf"\b{way}[1-6]\b", text_tokens(chrome, "base")[first].get_attribute("class"))
    chrome.execute_script("arguments[0].focus()", buttons[4])
    press(chrome, Keys.ENTER)
    assert lit() == [notable(c["attribution"][4]) for c in example["completions"]]
    counts = [int(c.get_attribute("textContent")) for c in buttons[4].find_elements("css selector", ".count")]
    assert counts == [len(x) for x in lit()]
    press(chrome, Keys.ENTER)
    assert lit() == [[], [], []] and buttons[4].get_attribute("aria-pressed") == "false"
    buttons[0].click()
    press(chrome, Keys.ESCAPE)
    assert lit() == [[], [], []]


# ------------------------------------------------------------------------------------------------ examples


def test_filters_keys_and_links(opened):
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import Select

    stage = a_stage()
    key = lambda e: {c["role"]: c["scores"]["accuracy"] for c in e["completions"]}
    writing = a_writing_stage()
    chrome = opened(a_run(writing, stage), "#stage2/eval-0-5")
    visible = lambda: [a.get_attribute("href").split("/")[-1] for a in all_of(chrome, ".stage:not(.away) .list a")]
    assert shown_example(chrome) == "eval-0-5" and len(visible()) == 12
    assert chrome.execute_script(
        """const {top} = document.querySelector('.stage:not(.away) .view').getBoundingClientRect();
        return top >= 0 && top < innerHeight / 2"""
    )
    press(chrome, "j", "j", "k", Keys.ARROW_RIGHT)
    wait_for(chrome, "document.querySelector('.stage:not(.away) .title h3').textContent === 'eval-0-7'")
    assert chrome.current_url.endswith("#stage2/eval-0-7")
    one(chrome, ".stage:not(.away) button[aria-label='Next example']").click()
    wait_for(
        chrome,
        "document.activeElement.closest('.title')?.querySelector('h3').textContent === 'eval-0-8'",
    )
    by_split, by_outcome = [Select(x) for x in all_of(chrome, ".stage:not(.away) select")]
    by_outcome.select_by_value("gained")
    gained = [e["id"] for e in stage["examples"] if key(e)["base"] < 1 <= key(e)["trained"]]
    assert visible() == gained and len(gained) > 1
    by_split.select_by_visible_text("out of distribution")
    assert visible() == [
        e["id"] for e in stage["examples"] if e["id"] in gained and e["split"] == "out_of_distribution"
    ]
    by_split.select_by_visible_text("all splits")
    by_outcome.select_by_value("wrong")
    wrong = [e["id"] for e in stage["examples"] if key(e)["trained"] < 1]
    assert visible() == wrong
    assert by_outcome.first_selected_option.text == f"trained wrong ({len(wrong)})"
    wait_for(chrome, f"document.querySelector('.stage:not(.away) .title h3').textContent === '{wrong[0]}'")
    chrome.execute_script("document.querySelector('.stage:not(.away) .list [aria-current]').focus()")
    press(chrome, Keys.ARROW_DOWN)
    wait_for(chrome, f"document.querySelector('.stage:not(.away) .title h3').textContent === '{wrong[1]}'")
    assert chrome.switch_to.active_element.get_attribute("href").endswith(wrong[1])
    chrome.execute_script("location.hash = '#stage1/eval-1-2'")  # of the other stage
    wait_for(chrome, "document.querySelector('.stage:not(.away) .title h3').textContent === 'eval-1-2'")
    assert one(chrome, "nav.stages [aria-current]").text.startswith("stage1")
    by_score = Select(one(chrome, ".stage:not(.away) select[aria-label=Outcome]"))  # rubrics are not right or wrong
    f1 = [{c["role"]: c["scores"]["criterion_f1"] for c in e["completions"]} for e in writing["examples"]]
    above = sum(of["trained"] > of["base"] for of in f1)
    assert by_score.options[1].get_attribute("textContent") == f"trained above base ({above})"


def test_ids_that_are_taken_and_odd_ones_have_links_of_their_own(opened):
    stage = a_stage(examples=3, name="")
    stage["examples"][0]["id"] = stage["examples"][2]["id"] = "a/b %#é"
    chrome = opened(a_run(stage), "#/out_of_distribution%3Aa%2Fb%20%25%23%C3%A9")
    wait_for(chrome, "document.querySelector('.view h3').textContent === 'out_of_distribution:a/b %#é'")
    opened(a_run(stage), "#/%E0%A4%A")  # not even a link
    assert shown_example(chrome) == "a/b %#é"


def test_rubrics_stand_beside_each_other(opened):
    stage = a_writing_stage()
    rubric = stage["rubrics"][0]
    chrome = opened(a_run(stage))
    table = all_of(chrome, ".rubrics table.aligned")[0]
    rows = [
        [cell.text for cell in row.find_elements("css selector", "td")]
        for row in table.find_elements("css selector", "tbody tr")
    ]
    signs = [sign for _, sign, _ in rows]
    assert sorted(signs) == sorted(["=", "=", "=", "≈", "−", "+"])
    for truth, sign, written in rows[:5]:
        assert truth and (sign == "−") == (not written)
        if sign == "=":
            assert truth.split("in part")[1].strip() in written.rstrip(".").lower().split("in part")[1]
    assert "mentions the weather" in rows[5][2] and not rows[5][0]
    pitfalls = table.find_elements("css selector", "td.of-pitfall .kind.pitfall")
    assert len(pitfalls) == sum(c["kind"] == "Pitfall" for c in rubric["truth"] + rubric["written"])
    assert "5 strict, 2 salvaged, 2 rejected." in one(chrome, ".rubrics > .note").text
    assert "[ not quite JSON" in chrome.execute_script("return document.querySelector('.rubrics').textContent")


# ------------------------------------------------------------------------------------------------ looks


def test_dark_mode_and_its_switch(opened):
    background = """const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g);
        return +r + +g + +b"""
    chrome = opened(a_run(a_stage(examples=1)), dark=True)
    assert chrome.execute_script(background) < 150
    one(chrome, "#theme").click()
    assert chrome.execute_script(background) > 600 and one(chrome, "#theme").text == "Dark"
    chrome = opened(a_run(a_stage(examples=1)))
    assert chrome.execute_script(background) > 600
    one(chrome, "#theme").click()
    assert chrome.execute_script(background) < 150


def test_a_phone_scrolls_tables_and_not_the_page(opened):
    chrome = opened(a_run(a_writing_stage(), a_stage(tokens=300)), width=360, height=740)
    for stage in (0, 1):
        chrome.execute_script("document.querySelectorAll('nav.stages button')[arguments[0]].click()", stage)
        chrome.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        assert chrome.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    wide, first = chrome.execute_script("""
        const table = document.querySelector(".numbers"), scroller = table.parentElement;
        scroller.scrollLeft = 200;
        const {left} = table.querySelector("tbody th").getBoundingClientRect();
        return [scroller.scrollWidth > scroller.clientWidth, left];""")
    assert wide and 0 <= first < 20
    token = text_tokens(chrome, "trained")[40]
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", token)
    token.click()
    box = chrome.execute_script(
        "const b = document.querySelector('#tooltip').getBoundingClientRect(); return [b.left, b.right, b.height]"
    )
    assert box[0] >= 0 and box[1] <= 360 and box[2] > 50
    assert chrome.execute_script("return document.documentElement.scrollWidth") == 360


def test_results_on_a_phone_are_not_cut(opened):
    stage = a_stage(examples=1)
    for splits in stage["evaluation"].values():
        splits["a_third_one_of_a_long_name"] = dict(splits["in_distribution"])
    chrome = opened(a_run(stage), width=360, height=740)
    scrolls, cells = chrome.execute_script("""
        const scroller = document.querySelector(".headline").parentElement;
        const cells = [...document.querySelectorAll(".headline tbody tr > *")].map((cell) => {
            const {left, right, width} = cell.getBoundingClientRect();
            return [left, right, width, cell.scrollWidth > cell.clientWidth, cell.dataset.column ?? ""];
        });
        return [scroller.scrollWidth > scroller.clientWidth, cells];""")
    assert not scrolls and len(cells) % 7 == 0 and cells
    assert all(0 <= left < right <= 360 and width > 100 and not cut for left, right, width, cut, _ in cells)
    assert {name for *_, name in cells if name} == {
        f"{split}, {mode}"
        for split in ("in distribution", "out of distribution", "a third one of a long name")
        for mode in ("sampled", "greedy")
    }


@pytest.mark.parametrize("width", [360, 1440])
def test_headings_go_down_one_level_at_a_time(opened, width):
    """What axe calls heading-order: who listens to the page's outline misses no level of it."""
    chrome = opened(a_run(a_writing_stage(), a_stage()), width=width)
    for stage in (0, 1):
        chrome.execute_script("document.querySelectorAll('nav.stages button')[arguments[0]].click()", stage)
        levels = chrome.execute_script("""
            return [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")]
                .filter((h) => h.checkVisibility()).map((h) => Number(h.tagName[1]))""")
        assert levels[0] == 1 and levels.count(1) == 1 and 4 in levels
        assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), levels


def test_a_long_value_leaves_its_key_whole(opened):
    stage = a_stage(examples=1)
    values = {
        "rubric.writer": "/tmp/a/folder/of/forty/characters/xxxxx/",
        "model.path": "x" * 41,
        "data.max_teacher_prompt": "/home/someone/data/questions/train.jsonl",
        "eval.benchmarks.gpqa_diamond": "y" * 300,
    }
    stage |= {"config": values, "config_changed": list(values)}
    for width in (360, 1024, 1440):
        chrome = opened(a_run(stage), width=width)
        found = chrome.execute_script("""
            return [...document.querySelectorAll(".settings div")].map((row) => {
                const [key, value] = row.children, box = row.getBoundingClientRect(), range = document.createRange();
                range.selectNodeContents(key);
                const inside = value.getBoundingClientRect();
                return [range.getClientRects().length, inside.right <= box.right + 0.5 && inside.left >= box.left - 0.5,
                        value.scrollWidth <= value.clientWidth, value.textContent];
            })""")
        assert [value for *_, value in found] == list(values.values())
        assert all(lines == 1 and inside and whole for lines, inside, whole, _ in found), (width, found)


def test_the_page_opens_on_what_training_changed(opened):
    """Not on an example that all roles get right, whose tokens have no colour."""
    stage = a_stage(examples=6)
    answers = {"base": (1, 1, 0, 0, 0, 1), "trained": (1, 0, 0, 1, 1, 1), "teacher": (1, 1, 1, 1, 1, 1)}
    for i, example in enumerate(stage["examples"]):
        for completion in example["completions"]:
            completion["scores"] = {"accuracy": float(answers[completion["role"]][i])}
    assert shown_example(opened(a_run(stage))) == "eval-0-3"
    assert shown_example(opened(a_run(stage), "#stage2/eval-0-0")) == "eval-0-0"
    for example in stage["examples"]:  # rubrics are not right or wrong: the first that rose
        for completion in example["completions"]:
            better = completion["role"] == "trained" and example["id"] == "eval-0-4"
            completion["scores"] = {"valid": 1.0, "criterion_f1": 0.6 if better else 0.5}
    assert shown_example(opened(a_run(stage))) == "eval-0-4"
    for i, example in enumerate(stage["examples"]):  # nothing was gained
        for completion in example["completions"]:
            completion["scores"] = {"accuracy": float(i != 2)}
    assert shown_example(opened(a_run(stage))) == "eval-0-2"
    for example in stage["examples"]:
        example["completions"] = []
    assert shown_example(opened(a_run(stage))) == "eval-0-0"


def test_a_line_says_what_was_run(opened):
    settings = {
        "model.path": "/models/Qwen/Qwen3-8B", "method": "self_distillation", "task": "solve", "lora.rank": 64,
        "teacher.fields": ["question", "rubric"], "train.steps": 100, "train.batch_size": 32, "data.path": "/data/rows.jsonl",
    }  # fmt: skip
    stage, writing = a_stage(examples=1), a_writing_stage()
    stage["config"] = settings
    writing["config"] = settings | {"task": "write_rubric", "lora.rank": 0, "train.steps": 1}
    chrome = opened(a_run(writing, stage))
    assert chrome.title == "tiny · rcsd_jax"
    assert [line.text for line in all_of(chrome, ".ran")] == [
        "stage1 Self-distillation of Qwen/Qwen3-8B to write rubrics, all weights, the teacher sees question + rubric, "
        "1 step of 32 completions, on rows.jsonl",
        "stage2 Self-distillation of Qwen/Qwen3-8B, LoRA of rank 64, the teacher sees question + rubric, "
        "100 steps of 32 completions, on rows.jsonl",
    ]
    stage |= {"name": "", "metrics": {}, "evaluation": {"base": stage["evaluation"]["base"]}}
    assert one(opened(a_run(stage)), ".ran").text == "Evaluation of Qwen/Qwen3-8B"
    stage |= {"config": settings | {"method": "sft"}, "metrics": a_stage()["metrics"]}
    assert one(opened(a_run(stage)), ".ran").text == (
        "Fine-tuning on references of Qwen/Qwen3-8B, LoRA of rank 64, 100 steps of 32 completions, on rows.jsonl"
    )


def test_the_commands_are_copied(opened):
    chrome = opened(a_run(a_stage(examples=1)))
    first, second = all_of(chrome, "button.copy")
    second.click()
    wait_for(chrome, "/Copied|Selected/.test(document.querySelectorAll('button.copy')[1].textContent)")
    assert first.text == "Copy"
    assert [code.text for code in all_of(chrome, ".command code")] == [
        "python -m rcsd_jax.main --config=configs/tiny.py",
        "python -m rcsd_jax.main --config=tiny '--workdir=a b'",
    ]


# ------------------------------------------------------------------------------------------------ bad and missing data


def test_hostile_text_stays_text(opened):
    stage = a_stage(examples=2, tokens=12)
    writing = a_writing_stage()
    example = stage["examples"][0]
    for key in ("id", "question", "reference", "split"):
        example[key] = HOSTILE
    for c in [*example["rubric"], *writing["rubrics"][0]["truth"], *writing["rubrics"][0]["written"]]:
        c |= {"title": HOSTILE, "description": HOSTILE}
    writing["rubrics"][0] |= {"id": HOSTILE, "question": HOSTILE, "text": HOSTILE, "status": HOSTILE}
    completion = example["completions"][0]
    completion["tokens"][3] = HOSTILE
    completion["student_top"][3][1][0] = HOSTILE
    example["completions"].append({"role": "teacher", "scores": {HOSTILE: 1}, "cut": False, "text": HOSTILE})
    stage |= {"name": HOSTILE, "config": {HOSTILE: HOSTILE}, "config_changed": [HOSTILE]}
    stage["metrics"][HOSTILE] = [0.5] * 80
    run = a_run(writing, stage) | {
        "title": HOSTILE,
        "commands": [HOSTILE],
        "made": HOSTILE,
        "versions": {HOSTILE: HOSTILE},
    }
    chrome = opened(run)
    told = HOSTILE.replace("\ud83d", "?")
    shown = chrome.execute_script(
        "return document.querySelector('.stage:not(.away) .card .t:nth-child(4)').textContent"
    )
    assert shown == told
    assert (
        chrome.execute_script("return document.querySelector('.stage:not(.away) .text.unscored').textContent") == told
    )
    chrome.execute_script("document.querySelectorAll('.stage:not(.away) .card .t')[0].focus()")
    press(chrome, "\ue014" * 3)  # right, to the tooltip of the fourth token
    assert told[:30] in chrome.execute_script("return document.querySelector('#tooltip').textContent")
    assert all_of(chrome, "img") == [] and not chrome.title.startswith("owned")
    assert chrome.execute_script("return document.querySelectorAll('script').length") == page.render(run).count(
        "<script"
    )


EMPTY = ("evaluation", "metrics", "lengths", "examples", "rubrics", "config")


@pytest.mark.parametrize("without", [*EMPTY, EMPTY])
def test_missing_sections_are_left_out(opened, without):
    stage = a_writing_stage()
    for name in [without] if isinstance(without, str) else without:
        if name == "config":
            del stage[name]
        else:
            stage[name] = type(stage[name])()
    chrome = opened(a_run(stage))
    headings = {h.text for h in all_of(chrome, "h2")}
    expected = {
        "Results": stage["evaluation"], "Training": stage["metrics"] or stage["lengths"], "Rubrics": stage["rubrics"],
        "Completions": stage["examples"], "Configuration": stage.get("config"), "Made with": True,
    }  # fmt: skip
    assert headings == {name for name, there in expected.items() if there}


def test_nothing_at_all(opened):
    chrome = opened({"title": "nothing", "stages": []})
    assert one(chrome, "h1").text == "nothing"
    opened({})
    opened(a_run({"name": "stage2"}))


def test_completions_that_were_not_scored_and_numbers_that_are_none(opened):
    stage = a_stage(examples=2, tokens=10)
    first, second = (e["completions"] for e in stage["examples"])
    stage["examples"][0]["completions"] = [
        {"role": "base", "scores": {"accuracy": math.nan}, "cut": False, "text": "a  b\n c"}
    ]
    second[0] |= {"divergence": [math.nan, math.inf, -math.inf, None, *[0.5] * 6], "attribution": None}
    second[0]["teacher_log_prob"][0] = -math.inf
    second[0]["student_top"] = [[] for _ in range(10)]
    second[0]["teacher_top"][0] = second[0]["teacher_top"][0][:2]
    second[1]["tokens"][4] = ""
    stage["metrics"]["loss"][3] = math.nan
    stage["evaluation"]["trained"]["in_distribution"]["sampled"] = {
        "questions": 4,
        "accuracy": None,
        "accuracy_interval": None,
        "length": math.nan,
        "share_cut": 0.0,
    }
    stage["examples"][0] |= {"question": "[user] A cart. [user] And then ?", "brief": "And then ?"}
    chrome = opened(a_run(stage))
    assert all_of(chrome, ".list .brief")[0].text == "And then ?"
    assert one(chrome, ".text.unscored").get_attribute("textContent") == "a  b\n c"
    assert "not graded" in all_of(chrome, ".list a")[0].get_attribute("aria-label")
    press(chrome, "j")
    wait_for(chrome, "document.querySelector('.view h3').textContent === 'eval-0-1'")
    assert tones(chrome, "base") == [
        "d0",
        "d6",
        "n6",
        "d0",
        *["d4"] * 6,
    ]
    chrome.execute_script("document.querySelector('.card.of-base .t').focus()")
    said = one(chrome, "#tooltip").text
    assert "divergence – nats" in said and "teacher log p < −32.7" in said
    assert len(tops(chrome)["student"]) == 1 and len(tops(chrome)["teacher"]) == 2
    assert "empty" in text_tokens(chrome, "trained")[4].get_attribute("class")


def test_what_decoding_a_token_alone_loses_is_found_again(opened):
    """A likeliest piece without the space before it, or with the end token's name, is still what was written."""
    stage = a_stage(examples=1, tokens=10)
    completion = stage["examples"][0]["completions"][0]
    completion["tokens"][2], completion["tokens"][9] = " law", "\u2403"
    for i, alone in ((2, "law"), (9, "<|im_end|>")):
        for role in ("student", "teacher"):
            completion[f"{role}_log_prob"][i] = math.log(0.7)
            completion[f"{role}_top"][i] = [[alone, 0.7], ["other", 0.2]]
    chrome = opened(a_run(stage))
    chrome.execute_script("document.querySelector('.card.of-base .t').focus()")
    press(chrome, "\ue014", "\ue014")  # right
    written = "return [...document.querySelectorAll('#tooltip .written .piece')].map((x) => x.textContent)"
    assert chrome.execute_script(written) == ["law", "law"] and len(tops(chrome)["student"]) == 2
    press(chrome, "\ue010")  # end
    assert chrome.execute_script(written) == ["<|im_end|>"] * 2 and len(tops(chrome)["student"]) == 2
    assert "end" in text_tokens(chrome, "base")[9].get_attribute("class").split()


def test_more_pieces_than_two_bytes_can_name(opened):
    stage = a_stage(examples=1, tokens=6600)
    completion = stage["examples"][0]["completions"][0]
    stage["examples"][0]["completions"] = [completion]
    for r, role in enumerate(("student", "teacher")):
        completion[f"{role}_top"] = [[[f"{r}-{i}-{j}", 0.1] for j in range(5)] for i in range(6600)]
    chrome = opened(a_run(stage))
    chrome.execute_script("document.querySelectorAll('.t')[0].focus()")
    press(chrome, "\ue010")  # end
    assert tops(chrome)["teacher"][:5] == [[f"1-6599-{j}", "10.0"] for j in range(5)]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c: c["divergence"].pop(), "example 'eval-0-0', role 'base': 9 of divergence for 10 tokens"),
        (lambda c: c["teacher_top"].append([]), "11 of teacher_top for 10 tokens"),
        (lambda c: c["attribution"][1].pop(), r"9 of attribution\[1\] for 10 tokens"),
        (lambda c: c["attribution"].pop(), "attribution to 4 criteria of a rubric of 5"),
        (lambda c: add_target(c, random) or c["target_log_prob"].pop(), "9 of target_log_prob for 10 tokens"),
    ],
)
def test_scores_that_do_not_fit_are_refused(change, said):
    stage = a_stage(examples=1, tokens=10)
    change(stage["examples"][0]["completions"][0])
    with pytest.raises(ValueError, match=said):
        page.render(a_run(stage))


def test_blocks_hold_the_arrays_that_are_documented():
    stage, rng = a_stage(examples=1, tokens=7), random.Random(0)
    with_target, without = stage["examples"][0]["completions"][:2]
    add_target(with_target, rng)
    without["weight"] = [1.0] * len(without["tokens"])
    html = page.render(a_run(stage))
    of = lambda name: re.search(rf'id="{name}">([^<]*)</script>', html)[1]
    pieces, drawn = json.loads(of("pieces")), json.loads(of("data"))["stages"][0]
    assert drawn["views"] == ["divergence", "weight", "target"]
    for block, completion in enumerate((with_target, without)):
        count, roles = len(completion["tokens"]), 3 - block
        packed = zlib.decompress(base64.b64decode(of(f"tokens-{block}")))
        ids = np.frombuffer(packed, "<u2", count * (1 + 5 * roles))
        numbers = np.frombuffer(packed, "<i2", offset=ids.nbytes)
        assert [pieces[i] for i in ids[:count]] == completion["tokens"]
        names = ["divergence", "student_log_prob", "teacher_log_prob", "weight", "target_log_prob", "target_divergence"]
        columns = names if roles == 3 else names[:4]
        for k, name in enumerate(columns):
            wanted = np.rint(1000 * np.array(completion[name]))
            np.testing.assert_array_equal(numbers[k * count :][:count], wanted)
        tops = [completion[f"{role}_top"] for role in ("student", "teacher", "target")[:roles]]
        assert [pieces[i] for i in ids[count:]] == [piece for top in tops for row in top for piece, _ in row]
        probabilities = [round(10_000 * p) for top in tops for row in top for _, p in row]
        at = len(columns) * count
        np.testing.assert_allclose(numbers[at : at + len(probabilities)], probabilities, atol=1)
        assert len(numbers) == at + len(probabilities) + 5 * count  # and attribution to five criteria


def test_the_page_is_whole_and_its_data_compact():
    stage = a_stage(examples=12, tokens=300)
    whole, empty = page.render(a_run(stage)), page.render({})
    count = sum(len(c["tokens"]) for e in stage["examples"] for c in e["completions"])
    assert not re.search(r"""(src|href)=["']?(?!#|data:|")|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", empty)
    assert len(empty.encode()) < 70_000
    assert len(whole.encode()) - len(empty.encode()) < 90 * count
    assert whole == page.render(a_run(stage))


@pytest.mark.slow
def test_a_large_page_opens_within_two_seconds(opened):
    """200 completions of 2000 tokens, with top-5s of both roles and 8 criteria."""
    rng = random.Random(7)
    kinds = [scored(rng, 2000, 8) for _ in range(10)]
    stage = a_stage(examples=67, tokens=2, criteria=8)
    completions = [c for e in stage["examples"] for c in e["completions"]][:200]
    for i, completion in enumerate(completions):
        completion |= kinds[i % 10]
    start = time.monotonic()
    html = page.render(a_run(stage))
    rendered = time.monotonic() - start
    for _ in range(5):  # what else the machine does is not the page's: one undisturbed opening will do
        chrome = opened(html)
        times = chrome.execute_script("""
            const [navigation] = performance.getEntriesByType("navigation");
            const at = (name) => performance.getEntriesByName(name)[0].startTime;
            return {ready: at("ready"), tokens: at("tokens"), parsed: navigation.domContentLoadedEventEnd,
                    loaded: navigation.loadEventEnd};""")
        if max(times.values()) < 2000:
            break
    print(f"{len(html) / 2**20:.1f} MiB, rendered in {rendered:.1f} s;", {k: round(v) for k, v in times.items()}, "ms")
    assert max(times.values()) < 2000
    assert len(text_tokens(chrome, "base")) == 2000
