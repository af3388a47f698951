"""The parts of the pages that live in the browser: a Vue component each, driven from Python by props."""
