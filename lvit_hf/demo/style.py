"""What gradio's own options cannot say about how the page looks."""

# Thumbnails fill the width there is, below the label and not under it.
STYLE = """
.thumbnails .grid-container { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) !important; }
.thumbnails .grid-wrap { padding-top: 2.2rem; }
.work-bar [role="progressbar"] { height: 0.6rem; border-radius: 0.3rem; background: var(--border-color-primary); }
.work-bar [role="progressbar"] div { height: 100%; border-radius: 0.3rem; background: var(--color-accent); }
.work-bar [role="status"] { text-align: center; }
"""
