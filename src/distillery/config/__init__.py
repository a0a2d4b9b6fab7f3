"""The configuration: what may be written (schema), how it is read (reading), what it means (resolve)."""

from distillery.config.resolve import Page, RunSpec, load_page, load_pages

__all__ = ["Page", "RunSpec", "load_page", "load_pages"]
