"""Model folders of Meta: params.json and consolidated.*.pth, read without executing a pickle. See FORMATS.md §6."""
