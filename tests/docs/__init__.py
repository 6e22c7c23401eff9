"""Tests of the pages: their commands, quotations and tables, and the site that is built of them."""
