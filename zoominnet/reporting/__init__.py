"""One page on what runs did: sections, a file each in `sections`, put together by `page`."""
