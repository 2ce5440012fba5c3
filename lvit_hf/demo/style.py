"""How the page looks."""

import gradio as gr


# Gradio's default with more contrast, as WCAG AA asks for.
THEME = gr.themes.Default(primary_hue="teal").set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
)

# Thumbnails fill the width there is, below the label and not under it.
CSS = """
:root { --color-accent: var(--primary-700); }
.dark { --color-accent: var(--primary-400); }
.legend-item { color: #18181b !important; }
.dark .legend { background: white; border-radius: var(--radius-sm); }
.thumbnails .grid-container { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) !important; }
.thumbnails .grid-wrap { padding-top: 2.2rem; }
.work-bar [role="progressbar"] { height: 0.6rem; border-radius: 0.3rem; background: var(--border-color-primary); }
.work-bar [role="progressbar"] div { height: 100%; border-radius: 0.3rem; background: var(--color-accent); }
.work-bar [role="status"] { text-align: center; }
"""
