"""Makes the picture of the README from a run's report: a curve beside the tokens of one question, in light and in dark.

    python docs/picture.py runs/tiny/report.html

The run behind it: `python -m rcsd_jax.main --config=configs/tiny.py --config.stage2.eval.every=10`. It needs Chromium, selenium and
Pillow.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

HERE = Path(__file__).parent
COLOURS = 256  # of the palette: the picture has flat areas, and stays small

# The report's own elements, put side by side: its first chart over a question's rubric; the question over the
# cards of base and trained student.
_CUT = """
const shown = (selector) => [...document.querySelectorAll(selector)].find((found) => found.offsetParent);
const chart = shown(".charts").firstElementChild, view = shown(".explorer .view");
const cards = [...view.querySelectorAll(".card")].filter((card) => !card.classList.contains("of-teacher"));
const cut = document.createElement("div");
cut.id = "cut";
cut.style = "display:grid;grid-template-columns:280px 1fr;gap:28px;align-items:start;width:820px;padding:16px;background:var(--paper)";
const right = document.createElement("div"), row = document.createElement("div"), left = document.createElement("div");
row.style = "display:grid;grid-template-columns:1fr 1fr;gap:12px;margin-top:12px";
row.append(...cards);
right.append(view.querySelector(".question"), row);
const rubric = document.createElement("div");
rubric.style = "margin-top:14px;font-size:13px;line-height:1.6";
rubric.innerHTML = "<b>Rubric, which only the teacher sees</b>";
for (const criterion of document.querySelectorAll(".explorer .criterion")) {
  if (!criterion.offsetParent) continue;
  const line = document.createElement("div"), kind = criterion.querySelector(".kind").cloneNode(true);
  kind.style.marginRight = "0.6em";
  line.append(kind, criterion.querySelector(".description").textContent);
  rubric.append(line);
}
left.append(chart, rubric);
cut.append(left, right);
document.body.replaceChildren(cut);
"""


def main(report: Path) -> None:
    """Writes `readme_light.png` and `readme_dark.png` beside this file."""
    options = webdriver.ChromeOptions()
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--hide-scrollbars",
        "--window-size=1300,900",
        "--force-device-scale-factor=2",
    ):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(report.resolve().as_uri())
        browser.execute_script("document.querySelectorAll('.explorer').forEach((found) => found.scrollIntoView())")
        # Completions are drawn once they are scrolled to.
        WebDriverWait(browser, 30).until(
            lambda b: any(e.is_displayed() for e in b.find_elements(By.CSS_SELECTOR, ".card"))
        )
        browser.execute_script(_CUT)
        for theme in ("light", "dark"):
            browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
            taken = Image.open(io.BytesIO(browser.find_element(By.ID, "cut").screenshot_as_png))
            small = taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            small.save(HERE / f"readme_{theme}.png", optimize=True)
    finally:
        browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
