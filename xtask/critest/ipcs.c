/* Lists shared memory segments as `ipcs -m` does; busybox has no such applet. */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/shm.h>

int main(void)
{
	struct shm_info info;
	struct shmid_ds segment;
	int last = shmctl(0, SHM_INFO, (void *)&info);

	printf("key shmid owner perms bytes nattch\n");
	for (int i = 0; i <= last; i++) {
		int id = shmctl(i, SHM_STAT, &segment);

		if (id >= 0)
			printf("0x%08x %d %d %o %zu %lu\n", segment.shm_perm.__key, id, segment.shm_perm.uid,
			       segment.shm_perm.mode & 0777, segment.shm_segsz, (unsigned long)segment.shm_nattch);
	}
	return 0;
}
