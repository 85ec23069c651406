"""Reading: one file a container, from single files to folders of them."""
