// Compiled into each library.

// The loader looks for this text in the file before it loads it (kernels/_extension.py).
extern "C" __attribute__((used, visibility("default"))) const char zoominnet_stamp[] =
    "zoominnet library " ZOOMINNET_STAMP;
