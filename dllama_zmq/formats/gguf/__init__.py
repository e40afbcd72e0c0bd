"""GGUF files: models by memory map, and metadata. See FORMATS.md §4. Knows no node and no compute."""
