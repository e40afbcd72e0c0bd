"""Model folders of Hugging Face: config.json and safetensors. See FORMATS.md §5."""
