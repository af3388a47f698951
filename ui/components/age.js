// How old what stands beside it is: seconds since `beat` changed last, and after ten of them a badge that says it is stale.

export default {
  template: `<span class="ac-age" :class="{stale: age > 10}"><template v-if="beat"><b v-if="age > 10">stale</b> {{ age }} s ago</template></span>`,
  props: { beat: Number },
  data() {
    return { heard: Date.now(), age: 0 };
  },
  watch: {
    beat() {
      this.heard = Date.now();
      this.age = 0;
    },
  },
  mounted() {
    this.clock = setInterval(() => (this.age = Math.round((Date.now() - this.heard) / 1000)), 1000);
  },
  unmounted() {
    clearInterval(this.clock);
  },
};
