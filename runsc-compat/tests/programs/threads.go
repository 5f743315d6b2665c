// A program of many goroutines and threads with a known result: a lost wake-up or update shows in the sum.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	runtime.GOMAXPROCS(8)
	const workers, rounds = 64, 200
	var sum atomic.Int64
	var group sync.WaitGroup
	jobs := make(chan int)
	results := make(chan int, workers)
	for n := 0; n < workers; n++ {
		group.Add(1)
		go func(n int) {
			defer group.Done()
			// Half of them hold a thread of their own.
			if n%2 == 0 {
				runtime.LockOSThread()
			}
			for job := range jobs {
				sum.Add(int64(job))
				if job%50 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			results <- 1
		}(n)
	}
	for n := 0; n < workers*rounds; n++ {
		jobs <- n
	}
	close(jobs)
	group.Wait()
	done := 0
	for n := 0; n < workers; n++ {
		done += <-results
	}
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGUSR1)
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		panic(err)
	}
	<-caught
	runtime.GC()
	fmt.Println(done, sum.Load())
}
