"""From files to pixels: reading, resizing, patches and their augmentation."""
