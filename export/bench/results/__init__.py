"""Results: the document, what it is compared with, tables, pages and charts of it. Knows no device."""
