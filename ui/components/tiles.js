// Big figures, each with its age and, after ten seconds of silence, a badge that says it is stale.

export default {
  template: `
    <dl class="ac-tiles" data-testid="tiles">
      <div v-for="tile in tiles" :key="tile.name" class="ac-tile" :class="{stale: age > 10}" :title="tile.title" :data-tile="tile.name">
        <dt>{{ tile.name }}</dt>
        <dd>{{ tile.value }}<small v-if="tile.unit"> {{ tile.unit }}</small></dd>
        <dd class="ac-age"><b v-if="age > 10">stale</b><b v-else-if="tile.note">{{ tile.note }}</b> {{ age }} s ago</dd>
      </div>
    </dl>`,
  props: { tiles: Array, beat: Number },
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
