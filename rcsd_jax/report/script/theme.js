// Theme and copying.

const dark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = byId("theme");
const themeNow = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
function remembered(set) {
  try {
    if (set) localStorage.setItem("rcsd_jax.theme", set);
    return localStorage.getItem("rcsd_jax.theme");
  } catch {
    return null; // a file that cannot store anything
  }
}
function nameTheme() {
  themeButton.textContent = themeNow() === "dark" ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Switch to ${themeNow() === "dark" ? "light" : "dark"} colours`);
}
if (["light", "dark"].includes(remembered())) document.documentElement.dataset.theme = remembered();
themeButton.addEventListener("click", () => {
  document.documentElement.dataset.theme = themeNow() === "dark" ? "light" : "dark";
  remembered(themeNow());
  nameTheme();
});
dark.addEventListener("change", nameTheme);
nameTheme();

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // then it is one key press
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
}
