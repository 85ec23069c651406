"""What is asked of ComfyUI, and what flows between its nodes and ours."""
