"""Parts of HTML pages that need nothing from outside: markup, data in the page, plots."""
