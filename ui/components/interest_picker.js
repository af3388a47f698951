// Interests of a new user. Emits change {chosen}.

export default {
  template: `
    <fieldset v-if="categories.length" class="ac-interests" data-testid="interests">
      <legend>What do you like? The list changes immediately.</legend>
      <label v-for="category in categories" :key="category" :class="{on: chosen.includes(category)}">
        <input type="checkbox" :value="category" :checked="chosen.includes(category)" @change="toggle(category)">{{ category }}</label>
    </fieldset>`,
  props: { categories: Array, chosen: Array },
  methods: {
    toggle(category) {
      const others = this.chosen.filter((name) => name !== category);
      this.$emit("change", { chosen: others.length < this.chosen.length ? others : [...this.chosen, category] });
    },
  },
};
