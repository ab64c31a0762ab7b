// occupancy MAJOR MINOR THREADS SHARED, for a multiprocessor of that compute capability with so many threads and bytes
// of shared memory: for every line "registers-per-thread shared-bytes bytes-asked-for-by-the-launch" of a kernel, the
// blocks that run at once.
#include <cuda_occupancy.h>

#include <cstdio>
#include <cstdlib>

int main(int, char** arguments) {
  cudaOccDeviceProp device;
  device.computeMajor = atoi(arguments[1]);
  device.computeMinor = atoi(arguments[2]);
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = atoi(arguments[3]);
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.numSms = 1;
  device.sharedMemPerBlock = 48 * 1024;
  device.sharedMemPerMultiprocessor = atoi(arguments[4]);
  device.reservedSharedMemPerBlock = device.computeMajor >= 8 ? 1024 : 0;
  device.sharedMemPerBlockOptin = device.sharedMemPerMultiprocessor - device.reservedSharedMemPerBlock;

  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = 1024;
  cudaOccDeviceState state;
  const int threads = 256;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  for (int registers, shared, asked; scanf("%d %d %d", &registers, &shared, &asked) == 3;) {
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = shared;
    kernel.maxDynamicSharedSizeBytes = asked;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, asked) != CUDA_OCC_SUCCESS)
      return 1;
    printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
}
