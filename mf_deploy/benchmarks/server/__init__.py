"""The benchmark app for browsers: its engines, its HTTPS server, and what phones may post to it."""
