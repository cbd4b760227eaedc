// What the kernels' side of the emulator sees of machine.cpp. It includes nothing, so that a build of the kernels
// is short.

#pragma once

struct Thread {
    int index;  // in its block
    int block_index, blocks;
    unsigned char* shared;
};
extern Thread* current_thread;

void machine_barrier(int name, int threads);
void machine_sync_warp();
unsigned machine_exchange(unsigned value, int from);
const unsigned (*machine_exchange_six(const unsigned* values))[6];  // the 32 lanes' values, until the exchange after the next
void machine_copy(void* shared, const void* global, int size);
void machine_commit();
void machine_wait(int pending);
void machine_load(void* to, const void* from, int size);
void machine_store(void* to, const void* from, int size);
void machine_release();
unsigned machine_atomic_load(const unsigned* address);
unsigned machine_atomic_add(unsigned* address, unsigned value);
void machine_spin();
void machine_wait_for_predecessor();
void machine_let_successor_start();

using Kernel = void (*)(const void* first, const void* second);
Kernel kernel_named(const char* name);  // the harness's
