// What every operator's C entry is made of.
#pragma once

#ifdef __cplusplus
#define REDLINE_API extern "C" __attribute__((visibility("default")))
#else
#define REDLINE_API __attribute__((visibility("default")))
#endif

enum RedlineFormat { kRedlineInt8 = 0, kRedlineBf16 = 1, kRedlineFp32 = 2 };
