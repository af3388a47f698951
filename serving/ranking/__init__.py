"""From candidates to the page that is shown, and why: no I/O."""
